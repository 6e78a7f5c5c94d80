"""Login rate limits: slow down password guessing, without letting an attacker lock out the owner.

Each counter allows free failures, then a wait that doubles from 1 to 60 seconds: per account and address (5), per
account from anywhere (50), per address for any account (50), and per IPv6 network that one customer may have (/56:
100, /48: 200). For an address from which the account logged in during the last 30 days, only the first counter
applies, so that an attacker elsewhere can't lock out the owner. Unknown names count in the same way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.line import Place
from moorage_controller.auth.rate_limit import neighbourhood, network, sites
from moorage_controller.errors import TooManyRequestsError
from moorage_controller.store.tables import logins as store
from moorage_controller.store.tables.logins import Failures

_FREE_OF_PAIR = 5
_FREE_OF_ONE = 50
_FREE_OF_SITES = (100, 200)
"""Free failures of a /56 and of a /48 network."""
_MOST_SECONDS = 60
_MOST_DOUBLINGS = 6
_TRUST = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Counter keys of a login attempt; `site_keys` are those of the networks around the address."""

    pair: str
    account: str
    address: str
    site_keys: tuple[str, ...]
    neighbourhood: str

    @classmethod
    def of(cls, username: str, address: str | None) -> "Attempt":
        """Build the keys for a name as entered and an address."""
        where = network(address)
        return cls(
            pair=store.key("pair", username, where),
            account=store.key("account", username),
            address=store.key("address", where),
            site_keys=tuple(store.key("site", site) for site in sites(address)),
            neighbourhood=neighbourhood(address),
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """All counter keys."""
        return (self.pair, self.account, self.address, *self.site_keys)


def delay(failures: int, free: int) -> int:
    """Return the seconds to wait after `failures`, of which `free` cause no wait."""
    return 0 if failures < free else min(_MOST_SECONDS, 2 ** min(failures - free, _MOST_DOUBLINGS))


async def check(connection: AsyncConnection, attempt: Attempt, now: datetime) -> Place:
    """Return the attempt's place in the password queue. Raises TooManyRequestsError if it comes too early.

    An attempt is known after a recent login with that name from that address, so the place reveals nothing about a
    name alone.
    """
    found = await store.get(connection, attempt.keys)
    until = _until(found, attempt.pair, _FREE_OF_PAIR, now)
    row = found.get(attempt.pair)
    known = row is not None and row.trusted_until is not None and row.trusted_until > now
    if not known:
        counts = [(attempt.account, _FREE_OF_ONE), (attempt.address, _FREE_OF_ONE)]
        counts += zip(attempt.site_keys, _FREE_OF_SITES, strict=False)
        until = max(until, *(_until(found, one, free, now) for one, free in counts))
    if until > now:
        seconds = math.ceil((until - now).total_seconds())
        raise TooManyRequestsError(f"Too many failed logins: try again in {seconds} s.", seconds)
    return Place(attempt.pair if known else attempt.neighbourhood, known)


async def failed(connection: AsyncConnection, attempt: Attempt, now: datetime) -> None:
    """Count a failure in the transaction of its audit entry."""
    await store.count(connection, attempt.keys, now)
    await store.forget(connection, now)


async def succeeded(connection: AsyncConnection, attempt: Attempt, now: datetime) -> None:
    """Reset and trust the pair. Other counters stay, else an attacker could reset them with their own account."""
    await store.trust(connection, attempt.pair, now, now + _TRUST)


def _until(found: Mapping[str, Failures], key: str, free: int, now: datetime) -> datetime:
    row = found.get(key)
    return now if row is None else row.last_at + timedelta(seconds=delay(row.failures, free))
