"""What is PostgreSQL's own: its driver, its clock, and whose turn it is to write."""

from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import StartupError

DRIVER = "postgresql+asyncpg"

_WRITERS = 0x4D6F6F72
"""The advisory lock that writers hold: any number that nobody else uses in that database."""
_CONNECT_SECONDS = 10.0
_SESSION = {
    "application_name": "moorage-controller",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""A controller that hangs, or whose network is cut, in mid-transaction must not lock out the others for good."""


def options(url: str) -> dict[str, Any]:
    """Return the engine's options. The driver reads the URL itself, since it knows libpq's own words (`sslmode`)."""
    _, _, rest = url.partition("://")
    # A connection that died with its server is noticed, and replaced, before it is used.
    return {"async_creator": partial(_connect, f"postgresql://{rest}"), "pool_pre_ping": True, "pool_size": 10}


async def _connect(url: str) -> Any:  # noqa: ANN401 - the driver ships no types
    try:
        return await asyncpg.connect(url, timeout=_CONNECT_SECONDS, server_settings=_SESSION)
    except ValueError:
        # The driver's own sentence may have a part of the password in it.
        raise StartupError(
            "bad_database_url",
            "DATABASE_URL can't be read: write postgresql://user:password@host:5432/name, with signs such as @ and / "
            "in the password percent-encoded.",
        ) from None


async def admit(connection: AsyncConnection) -> None:
    """Wait until nobody else writes; the turn ends with the transaction."""
    await connection.execute(select(func.pg_advisory_xact_lock(_WRITERS)))


async def now(connection: AsyncConnection) -> datetime:
    """Return the server's time; `now()` would be that of the transaction's begin."""
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment
