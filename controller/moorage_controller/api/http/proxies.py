"""Who really sent a request: a proxy's word counts only where the proxy is known."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class TrustedProxies:
    """The networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed (`TRUSTED_PROXIES`)."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def client(self, request: web.Request) -> str | None:
        """Return the caller's address: the right-most one that is no proxy of ours, since a caller writes the left."""
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
        """Tell whether the caller speaks HTTPS: with us, or with the proxy that is nearest to us."""
        if request.secure:
            return True
        peer = _parse(request.remote or "")
        if peer is None or not self._trusts(peer):
            return False
        told = ",".join(request.headers.getall("X-Forwarded-Proto", []))
        return told.rpartition(",")[2].strip().lower() == "https"

    def trusts(self, peer: str) -> bool:
        """Tell whether who is connected with us is a proxy of ours."""
        address = _parse(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(text: str) -> Address | None:
    """Read an address as proxies write it: bare, with a port, in brackets; an IPv4 in IPv6 is the IPv4."""
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
    # Without its zone, which may be any text.
    return address.ipv4_mapped or IPv6Address(int(address))
