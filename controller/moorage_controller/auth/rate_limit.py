"""How often somebody may ask: a budget a minute for each caller, kept in this process.

Not the library `limits`: its memory store asks the machine's clock and starts timers of its own, while here one clock
decides, and an ordinary request must neither write nor wait. Logins are limited in the database
(`store/tables/logins.py`).
"""

import ipaddress
import math
from enum import Enum
from typing import Protocol

_MOST_CALLERS = 10_000
_MINUTE = 60.0
_ROUNDING = 0.001
"""Seconds: sums of fractions are not exact."""


class Limit(Enum):
    """What a route counts against."""

    NONE = "none"
    """Probes of health, which must never be refused."""
    GENERAL = "general"
    """The general budget of a user, or of an address where there is no user."""
    SIGN_IN = "sign_in"
    """A smaller budget of the address: each call costs a password's comparison."""


class Monotonic(Protocol):
    """The part of a clock that is needed here."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point."""


class Budget:
    """`per_minute` requests a minute for each caller, all of them at once if he likes (GCRA); 0: without a limit."""

    def __init__(self, per_minute: int, clock: Monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._due: dict[str, float] = {}

    def take(self, caller: str) -> int:
        """Count a request. Returns 0 when it may pass, else the whole seconds to wait; a refused one isn't counted."""
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
    """Return the budgets that routes name; `per_minute` 0 switches both off."""
    sign_ins = min(_SIGN_INS_PER_MINUTE, per_minute)
    return {Limit.GENERAL: Budget(per_minute, clock), Limit.SIGN_IN: Budget(sign_ins, clock)}


def network(address: str | None) -> str:
    """Return an address as limits count it: IPv6 by its /64, which a single host commands."""
    return _within(address, 32, 64)


def sites(address: str | None) -> tuple[str, ...]:
    """Return the networks around an IPv6 address that one customer may be given: its /56 and its /48.

    None for IPv4: neighbours in a /24 are strangers to each other, and one would be refused for another's failures.
    """
    parsed = _parsed(address)
    if not isinstance(parsed, ipaddress.IPv6Address):
        return ()
    return (_within(address, 32, 56), _within(address, 32, 48))


def neighbourhood(address: str | None) -> str:
    """Return the widest network that shares a place in a line, which holds nobody off for long: /24 or /48."""
    return _within(address, 24, 48)


def _within(address: str | None, bits: int, bits_v6: int) -> str:
    parsed = _parsed(address)
    if parsed is None:
        return address or "unknown"
    size = bits_v6 if isinstance(parsed, ipaddress.IPv6Address) else bits
    if size == parsed.max_prefixlen:
        return str(parsed)
    # By its number: a zone (fe80::1%eth0) names no network.
    return str(ipaddress.ip_network((int(parsed), size), strict=False))


def _parsed(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
