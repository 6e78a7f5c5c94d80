"""What opens a host by SSH: sealed as one text in `servers.encrypted_credentials`, in the clear only in memory."""

import json
from dataclasses import asdict, dataclass, field

import asyncssh


@dataclass(frozen=True, slots=True)
class SshCredentials:
    """A private key in PEM or OpenSSH form with its passphrase, or a password; empty means there is none.

    Never printed: the fields are left out of `repr`.
    """

    private_key: str = field(default="", repr=False)
    passphrase: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def to_text(self) -> str:
        """Return the text that is sealed."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "SshCredentials":
        """Read what `to_text` made; fields that a newer version added are left aside."""
        told = json.loads(text)
        return cls(told.get("private_key", ""), told.get("passphrase", ""), told.get("password", ""))


def fingerprint(public_key: str) -> str:
    """Return the fingerprint of a public key in OpenSSH's one-line form, as `ssh-keygen -l` shows it: `SHA256:...`."""
    return asyncssh.import_public_key(public_key).get_fingerprint()
