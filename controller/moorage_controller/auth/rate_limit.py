"""Rate limits: a budget of requests per minute for each caller, kept in this process.

The library `limits` is not used: its memory store reads the machine's clock and starts its own timers. Here the
injected clock decides, and an ordinary request must neither write nor wait. Logins are limited in the database
(`store/tables/logins.py`).
"""

import ipaddress
import math
from enum import Enum
from typing import Protocol

_MOST_CALLERS = 10_000
_MINUTE = 60.0
_ROUNDING = 0.001
"""Tolerance in seconds, for rounding errors of float sums."""


class Limit(Enum):
    """The budget that a route counts against."""

    NONE = "none"
    """No limit: health probes must never be refused."""
    GENERAL = "general"
    """The general budget of a user, or of an address for requests without a user."""
    SIGN_IN = "sign_in"
    """A smaller budget of the address, because each call verifies a password."""


class Monotonic(Protocol):
    """A monotonic clock."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point."""


class Budget:
    """`per_minute` requests per minute for each caller, in one burst if needed (GCRA); 0 means no limit."""

    def __init__(self, per_minute: int, clock: Monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._due: dict[str, float] = {}

    def take(self, caller: str) -> int:
        """Count a request. Return 0 to admit it, else the whole seconds to wait; a refused one isn't counted."""
        if self._per_minute == 0:
            return 0
        now = self._clock.monotonic()
        due = max(self._due.get(caller, now), now) + _MINUTE / self._per_minute
        if due - now > _MINUTE + _ROUNDING:
            return math.ceil(due - now - _MINUTE)
        if caller not in self._due and len(self._due) >= _MOST_CALLERS:
            self._due = {key: value for key, value in self._due.items() if value > now}
        self._due[caller] = due
        return 0


_SIGN_INS_PER_MINUTE = 60


def budgets(per_minute: int, clock: Monotonic) -> dict[Limit, Budget]:
    """Return the budgets by limit; `per_minute` 0 disables both."""
    sign_ins = min(_SIGN_INS_PER_MINUTE, per_minute)
    return {Limit.GENERAL: Budget(per_minute, clock), Limit.SIGN_IN: Budget(sign_ins, clock)}


def network(address: str | None) -> str:
    """Return the network that limits count: the IPv4 address, or the IPv6 /64, which one host controls."""
    return _within(address, 32, 64)


def sites(address: str | None) -> tuple[str, ...]:
    """Return the networks of an IPv6 address that one customer may own: its /56 and its /48.

    Empty for IPv4: addresses in a /24 are unrelated, and one would be refused for another's failures.
    """
    parsed = _parsed(address)
    if not isinstance(parsed, ipaddress.IPv6Address):
        return ()
    return (_within(address, 32, 56), _within(address, 32, 48))


def neighbourhood(address: str | None) -> str:
    """Return the network that shares places in the password queue: /24 or /48. Sharing delays callers only briefly."""
    return _within(address, 24, 48)


def _within(address: str | None, bits: int, bits_v6: int) -> str:
    parsed = _parsed(address)
    if parsed is None:
        return address or "unknown"
    size = bits_v6 if isinstance(parsed, ipaddress.IPv6Address) else bits
    if size == parsed.max_prefixlen:
        return str(parsed)
    # Converted to a number to drop a zone (fe80::1%eth0), which is not valid in a network.
    return str(ipaddress.ip_network((int(parsed), size), strict=False))


def _parsed(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
