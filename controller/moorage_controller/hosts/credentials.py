"""SSH credentials: stored sealed, as one text, in `servers.encrypted_credentials`; in plaintext only in memory."""

import json
from dataclasses import asdict, dataclass, field

import asyncssh


@dataclass(frozen=True, slots=True)
class SshCredentials:
    """A private key in PEM or OpenSSH form with its passphrase, or a password; empty means absent.

    Never printed: the fields are left out of `repr`.
    """

    private_key: str = field(default="", repr=False)
    passphrase: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def to_text(self) -> str:
        """Return the plaintext for sealing."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "SshCredentials":
        """Parse the result of `to_text`; unknown fields of a newer version are ignored."""
        told = json.loads(text)
        return cls(told.get("private_key", ""), told.get("passphrase", ""), told.get("password", ""))


def fingerprint(public_key: str) -> str:
    """Return the fingerprint of a public key in OpenSSH's one-line form, as `ssh-keygen -l` shows it: `SHA256:...`."""
    return asyncssh.import_public_key(public_key).get_fingerprint()
