"""The client address of a request; forwarding headers count only from trusted proxies."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class TrustedProxies:
    """The networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted (`TRUSTED_PROXIES`)."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def client(self, request: web.Request) -> str | None:
        """Return the client's address: the right-most untrusted one; a client can forge those to its left."""
        peer = _parse(request.remote or "")
        if peer is None or not self._trusts(peer):
            return request.remote
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        found = peer
        for hop in reversed(hops):
            address = _parse(hop)
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return str(found)

    def is_https(self, request: web.Request) -> bool:
        """Return whether the client uses HTTPS to this server, or to the nearest trusted proxy."""
        if request.secure:
            return True
        peer = _parse(request.remote or "")
        if peer is None or not self._trusts(peer):
            return False
        told = ",".join(request.headers.getall("X-Forwarded-Proto", []))
        return told.rpartition(",")[2].strip().lower() == "https"

    def trusts(self, peer: str) -> bool:
        """Return whether the connected peer is a trusted proxy."""
        address = _parse(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(text: str) -> Address | None:
    """Parse an address from a proxy: bare, with a port, or in brackets. An IPv4-mapped IPv6 becomes IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # Drop the zone, which may be any text.
    return address.ipv4_mapped or IPv6Address(int(address))
