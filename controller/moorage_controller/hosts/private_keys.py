"""Validation of SSH private keys before they are stored."""

import base64
import re
from dataclasses import replace

import asyncssh
from asyncssh.asn1 import der_decode
from asyncssh.packet import SSHPacket

from moorage_controller.hosts.credentials import SshCredentials

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----(.*?)-----END \1PRIVATE KEY-----", re.DOTALL)
_PUBLIC = re.compile(r"^\s*(ssh-|ecdsa-|sk-)|PUBLIC KEY-----")
_OPENSSH_MAGIC = b"openssh-key-v1\0"
_MOST_BCRYPT_ROUNDS = 500
"""Limit of `ssh-keygen -a`; 24 rounds take about a second."""
_MOST_ITERATIONS = 10_000_000
"""Limit of PBKDF2 iterations in PKCS#8: a few seconds."""


class BadKeyError(Exception):
    """An unusable key. `field` is a field of SshCredentials; the sentence never contains a part of the key."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field
        self.sentence = sentence


def checked(credentials: SshCredentials) -> SshCredentials:
    """Return the credentials in the form to store. Raises BadKeyError.

    Text around the key is removed, and so is the passphrase of an unencrypted key. An encrypted key takes seconds of
    CPU time: call this in a thread.
    """
    if not credentials.private_key:
        if credentials.passphrase:
            raise BadKeyError("passphrase", "There is no private key for it: give sshPrivateKey too.")
        return credentials
    found = _PEM.search(credentials.private_key.replace("\r\n", "\n"))
    if found is None:
        raise _public() if _PUBLIC.search(credentials.private_key) else _unreadable()
    key = found[0] + "\n"
    if not _is_encrypted(found[1].strip(), found[2]):
        _load(key, None)
        return replace(credentials, private_key=key, passphrase="")
    if not credentials.passphrase:
        raise BadKeyError("passphrase", "The private key is encrypted: give its passphrase.")
    _load(key, credentials.passphrase)
    return replace(credentials, private_key=key)


def _load(text: str, passphrase: str | None) -> None:
    try:
        key = asyncssh.import_private_key(text, passphrase)
    # For a damaged key the library may raise any exception.
    except Exception as error:
        if passphrase is not None:
            raise BadKeyError("passphrase", "It doesn't open the private key, or the key is damaged.") from error
        raise _unreadable() from error
    if key.algorithm.startswith(b"sk-"):
        raise BadKeyError("private_key", "It needs a security token at hand: use a key that works without one.")


def _is_encrypted(kind: str, body: str) -> bool:
    """Return whether a key needs a passphrase. Raises BadKeyError for one that would take too long to decrypt."""
    try:
        if kind == "OPENSSH":
            cost, most = _bcrypt_rounds(base64.b64decode(body)), _MOST_BCRYPT_ROUNDS
        elif kind == "ENCRYPTED":
            cost, most = _largest_number(der_decode(base64.b64decode(body))), _MOST_ITERATIONS
        else:
            cost, most = int("ENCRYPTED" in body), 1
    except Exception as error:
        raise _unreadable() from error
    if cost > most:
        raise BadKeyError("private_key", "It would take too long to decrypt: encrypt it with fewer rounds.")
    return cost > 0


def _bcrypt_rounds(raw: bytes) -> int:
    """Return the rounds of an OpenSSH key, 0 for one that isn't encrypted (OpenSSH's PROTOCOL.key)."""
    packet = SSHPacket(raw.removeprefix(_OPENSSH_MAGIC))
    cipher, _kdf, options = packet.get_string(), packet.get_string(), packet.get_string()
    if cipher == b"none":
        return 0
    inner = SSHPacket(options)
    inner.get_string()
    return max(inner.get_uint32(), 1)


def _largest_number(decoded: object) -> int:
    if isinstance(decoded, tuple | frozenset):
        return max(map(_largest_number, decoded), default=1)
    return decoded if isinstance(decoded, int) else 1


def _public() -> BadKeyError:
    return BadKeyError("private_key", "This is a public key: give the private one, the file without .pub.")


def _unreadable() -> BadKeyError:
    return BadKeyError("private_key", "It must be a private key in OpenSSH or PEM form, the whole file.")
