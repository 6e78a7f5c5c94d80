"""The one-time join token that an admin copies from the controller to a host.

Its text is `moorage.ID.SECRET.FINGERPRINT`: the token's id, 32 random bytes (base64url), and the SHA-256 of the
controller's CA certificate. The secret itself is never sent: the request has a MAC made with it over all
relevant fields, so an enrolment over plain HTTP can be read by others, but neither hijacked nor altered.
"""

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

_PREFIX = "moorage"
_PARTS = 4
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A parsed join token; `str()` returns its text."""

    id: str
    secret: bytes
    ca_fingerprint: str

    @classmethod
    def make(cls, token_id: str, ca_fingerprint: str) -> "JoinToken":
        """Return a new token with a secret of 32 random bytes."""
        return cls(token_id, secrets.token_bytes(_SECRET_BYTES), ca_fingerprint)

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Parse a token's text. Raises ValueError with a sentence for anything else."""
        parts = text.strip().split(".")
        if len(parts) != _PARTS or parts[0] != _PREFIX:
            raise ValueError("This is not a join token: it should look like moorage.ID.SECRET.FINGERPRINT.")
        try:
            secret = base64.urlsafe_b64decode(parts[2] + "=" * (-len(parts[2]) % 4))
        except ValueError as error:
            raise ValueError("The join token's secret can't be read; copy the token again.") from error
        if len(secret) != _SECRET_BYTES:
            raise ValueError("The join token is cut short; copy the token again.")
        return cls(parts[1], secret, parts[3])

    def __str__(self) -> str:
        """Return the text for the admin to copy."""
        secret = base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()
        return f"{_PREFIX}.{self.id}.{secret}.{self.ca_fingerprint}"

    def __repr__(self) -> str:
        """Name the token without its secret: tracebacks and logs are no place for one."""
        return f"JoinToken(id={self.id!r})"

    def proof(self, csr: str, endpoint: str, version: str) -> str:
        """Return the `token` field of a request: `ID.MAC` over its other fields and the expected authority."""
        message = json.dumps([self.id, self.ca_fingerprint, csr, endpoint, version]).encode()
        return f"{self.id}.{hmac.new(self.secret, message, hashlib.sha256).hexdigest()}"
