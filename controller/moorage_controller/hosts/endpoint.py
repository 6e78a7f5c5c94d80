"""An agent's endpoint: a host and a port. Other address forms that gRPC accepts are rejected."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import quote

WRONG = (
    "It must be HOST:PORT: a host name, an IPv4 address, or an IPv6 address in brackets, and a port from 1 to 65535."
)
_HOST_NAME = re.compile(r"[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*\.?")
"""Letters of any script are allowed: the resolver supports them."""
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_MOST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A validated host and port."""

    host: str | IPv4Address | IPv6Address
    port: int

    @property
    def target(self) -> str:
        """The gRPC target, built only from the host and the port, with a fixed scheme."""
        match self.host:
            case IPv4Address():
                return f"ipv4:{self.host}:{self.port}"
            case IPv6Address():
                return f"ipv6:{quote(f'[{self.host}]', safe=':[]')}:{self.port}"
            case _:
                return f"dns:///{quote(self.host)}:{self.port}"


def parse(text: str) -> Endpoint:
    """Read HOST:PORT, with brackets around an IPv6 address. Raises ValueError with a sentence."""
    host, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > _MOST_PORT:
        raise ValueError(WRONG)
    return Endpoint(_host(host), int(port))


def _host(text: str) -> str | IPv4Address | IPv6Address:
    if text.startswith("[") and text.endswith("]"):
        address = _address(text[1:-1])
        if isinstance(address, IPv6Address):
            return address
        raise ValueError(WRONG)
    address = _address(text)
    if isinstance(address, IPv4Address):
        return address
    # A name whose last label is a number would be parsed as an unusual form of an IPv4 address.
    if not _HOST_NAME.fullmatch(text) or text.rstrip(".").rpartition(".")[2].isdigit():
        raise ValueError(WRONG)
    return text


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
