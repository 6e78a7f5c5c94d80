"""Encryption of secrets at rest: AES-256-GCM with a key ID prefix; row and column are the associated data."""

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moorage_controller.store.database.types import Ciphertext

_NONCE = 12
_PARTS = 3


class UndecryptableError(Exception):
    """A sealed text can't be decrypted: wrong key, wrong row, or altered. Its message is a sentence for an admin."""


class Keyring:
    """Encryption keys: all of them decrypt, the first one encrypts.

    A key is any text of 32 characters or more; HKDF-SHA256 derives the AES key from it. The format of sealed text is
    `v1:KEYID:BASE64(nonce + ciphertext)`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._marking = [_derive(text, b"moorage fingerprints v1") for text in texts]
        self._keys = {_key_id(text): AESGCM(_derive(text)) for text in texts}
        self._current = _key_id(texts[0])

    def seal(self, plaintext: str, *, column: str, row: str) -> Ciphertext:
        """Encrypt for one location: `column` is "table.column", `row` the row's ID."""
        nonce = os.urandom(_NONCE)
        sealed = self._keys[self._current].encrypt(nonce, plaintext.encode(), _place(column, row))
        return Ciphertext(f"v1:{self._current}:{base64.b64encode(nonce + sealed).decode()}")

    def is_current(self, sealed: Ciphertext) -> bool:
        """Return whether it was encrypted with the current key."""
        return sealed.startswith(f"v1:{self._current}:")

    def open(self, sealed: Ciphertext, *, column: str, row: str) -> str:
        """Decrypt and authenticate. Raises UndecryptableError."""
        parts = sealed.split(":")
        key = self._keys.get(parts[1]) if len(parts) == _PARTS else None
        if key is None:
            raise UndecryptableError(
                f"The secret in {column} was encrypted with another key: set ENCRYPTION_KEY (or "
                "ENCRYPTION_KEY_PREVIOUS) to the key that was in use when it was stored."
            )
        try:
            raw = base64.b64decode(parts[2])
            return key.decrypt(raw[:_NONCE], raw[_NONCE:], _place(column, row)).decode()
        except (InvalidTag, ValueError):
            raise UndecryptableError(f"The secret in {column} was altered or moved to another row.") from None

    def fingerprints(self, data: bytes) -> Sequence[str]:
        """Return keyed digests of data that may contain a secret, one per key, the current key's first.

        A plain digest would allow fast password guessing for anyone who can read the database.
        """
        return [hmac.digest(key, data, "sha256").hex() for key in self._marking]


def _derive(text: str, purpose: bytes = b"moorage secrets at rest v1") -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(text.encode())


def _key_id(text: str) -> str:
    return hashlib.sha256(b"moorage key id" + _derive(text)).hexdigest()[:8]


def _place(column: str, row: str) -> bytes:
    return f"{column}\0{row}".encode()
