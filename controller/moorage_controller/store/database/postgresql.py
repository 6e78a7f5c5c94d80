"""PostgreSQL specifics: driver options, server time, and the writers' advisory lock."""

from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import StartupError

DRIVER = "postgresql+asyncpg"

_WRITERS = 0x4D6F6F72
"""Key of the writers' advisory lock: any number not used otherwise in that database."""
_CONNECT_SECONDS = 10.0
_SESSION = {
    "application_name": "moorage-controller",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""The timeouts keep a controller that hangs or is disconnected in a transaction from blocking the others."""


def options(url: str) -> dict[str, Any]:
    """Return the engine's options. The driver parses the URL itself, as it knows libpq parameters (`sslmode`)."""
    _, _, rest = url.partition("://")
    # pool_pre_ping detects and replaces a dead connection before use.
    return {"async_creator": partial(_connect, f"postgresql://{rest}"), "pool_pre_ping": True, "pool_size": 10}


async def _connect(url: str) -> Any:  # noqa: ANN401 - the driver ships no types
    try:
        return await asyncpg.connect(url, timeout=_CONNECT_SECONDS, server_settings=_SESSION)
    except ValueError:
        # The driver's message may contain a part of the password.
        raise StartupError(
            "bad_database_url",
            "DATABASE_URL can't be read: write postgresql://user:password@host:5432/name, with signs such as @ and / "
            "in the password percent-encoded.",
        ) from None


async def admit(connection: AsyncConnection) -> None:
    """Acquire the writers' lock; it is released with the transaction."""
    await connection.execute(select(func.pg_advisory_xact_lock(_WRITERS)))


async def now(connection: AsyncConnection) -> datetime:
    """Return the server's current time; SQL `now()` would be the start of the transaction."""
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment
