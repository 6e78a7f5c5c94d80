"""The `login_failures` table: failure counters shared by all controllers and kept across restarts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass
from moorage_controller.store.schema import login_failures

FORGET = timedelta(minutes=15)
"""Time without a failure after which a counter starts again."""


@dataclass(frozen=True, slots=True)
class Failures:
    """A row of `login_failures`; `trusted_until` is set after a login of the account from that address."""

    key: str
    failures: int
    last_at: datetime
    trusted_until: datetime | None


def key(kind: str, *parts: str) -> str:
    """Return the key of a counter: a digest, as users sometimes type a password as the name."""
    return hashlib.sha256("\0".join((kind, *parts)).encode(errors="surrogatepass")).hexdigest()


async def get(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Failures]:
    """Return the counters of those keys, as far as they exist."""
    query = select(*columns(Failures, login_failures)).where(login_failures.c.key.in_(keys))
    return {row.key: row for row in (to_dataclass(Failures, found) for found in await connection.execute(query))}


async def count(connection: AsyncConnection, keys: Sequence[str], now: datetime) -> None:
    """Count a failure for each key."""
    for one in keys:
        statement = _insert(connection).values(key=one, failures=1, last_at=now)
        old = login_failures.c
        counted = case((old.last_at <= now - FORGET, 1), else_=old.failures + 1)
        changes = {"failures": counted, "last_at": now}
        await connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=changes))


async def trust(connection: AsyncConnection, one: str, now: datetime, until: datetime) -> None:
    """Reset a key's counter, and trust the key until then."""
    values = {"failures": 0, "last_at": now, "trusted_until": until}
    statement = _insert(connection).values(key=one, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))


async def forget(connection: AsyncConnection, now: datetime) -> None:
    """Delete counters that are expired and no longer trusted."""
    old = login_failures.c
    untrusted = or_(old.trusted_until.is_(None), old.trusted_until < now)
    await connection.execute(delete(login_failures).where(old.last_at <= now - FORGET, untrusted))


def _insert(connection: AsyncConnection) -> sqlite.Insert | postgresql.Insert:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(login_failures)
    return postgresql.insert(login_failures)
