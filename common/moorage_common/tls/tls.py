"""The credentials of one side of a mutual TLS connection."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client's certificate and key, and the authority it trusts; all PEM. The key is not in its `repr`."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
