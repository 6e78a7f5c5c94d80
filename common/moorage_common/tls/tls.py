"""What one side of a mutual TLS connection shows and believes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client's certificate and key, and the authority it believes; all PEM. The key shows in no log."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
