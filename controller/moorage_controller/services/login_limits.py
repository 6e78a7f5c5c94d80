"""How guessing passwords is slowed down, without letting a guesser lock the owner out.

Three counts, each with free failures, then a wait that doubles from 1 to 60 seconds: of an account from one address
(5), of an account from anywhere (50), of an address whatever the account (50). An address from which an account logged
in during the last 30 days only has the first count: who guesses from elsewhere can't keep the owner out. Names that
nobody bears count alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.rate_limit import network
from moorage_controller.errors import TooManyRequestsError
from moorage_controller.store import logins as store
from moorage_controller.store.logins import Failures

_FREE_OF_PAIR = 5
_FREE_OF_ONE = 50
_MOST_SECONDS = 60
_MOST_DOUBLINGS = 6
_TRUST = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The keys that a try of a password counts for."""

    pair: str
    account: str
    address: str

    @classmethod
    def of(cls, username: str, address: str | None) -> "Attempt":
        """Make the keys of a name, as it was typed, and an address."""
        where = network(address)
        return cls(store.key("pair", username, where), store.key("account", username), store.key("address", where))


def delay(failures: int, free: int) -> int:
    """Return the seconds to wait after so many failures."""
    return 0 if failures < free else min(_MOST_SECONDS, 2 ** min(failures - free, _MOST_DOUBLINGS))


async def check(connection: AsyncConnection, attempt: Attempt, now: datetime) -> None:
    """Raise TooManyRequestsError where this try comes too early."""
    found = await store.get(connection, (attempt.pair, attempt.account, attempt.address))
    until = _until(found, attempt.pair, _FREE_OF_PAIR, now)
    known = found.get(attempt.pair)
    if known is None or known.trusted_until is None or known.trusted_until <= now:
        others = (_until(found, one, _FREE_OF_ONE, now) for one in (attempt.account, attempt.address))
        until = max(until, *others)
    if until > now:
        seconds = math.ceil((until - now).total_seconds())
        raise TooManyRequestsError(f"Too many failed logins: try again in {seconds} s.", seconds)


async def failed(connection: AsyncConnection, attempt: Attempt, now: datetime) -> None:
    """Count a failure, in the transaction of its audit entry."""
    await store.count(connection, (attempt.pair, attempt.account, attempt.address), now)
    await store.forget(connection, now)


async def succeeded(connection: AsyncConnection, attempt: Attempt, now: datetime) -> None:
    """Start the pair anew. The others stay: with an account of one's own one could wipe an address's count."""
    await store.trust(connection, attempt.pair, now, now + _TRUST)


def _until(found: Mapping[str, Failures], key: str, free: int, now: datetime) -> datetime:
    row = found.get(key)
    return now if row is None else row.last_at + timedelta(seconds=delay(row.failures, free))
