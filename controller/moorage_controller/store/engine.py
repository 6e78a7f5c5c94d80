"""The database: one engine, read and write transactions, and the one time that decisions are made by."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from moorage_common.clock import Clock
from sqlalchemy import Connection, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from moorage_controller.store import sqlite

_BUSY_MILLISECONDS = 10_000


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite database file."""
    return f"sqlite+aiosqlite:///{path}"


def postgresql_url(url: str) -> str:
    """Return `postgresql://` (as the guide writes it) or `postgres://` with the driver that is used here."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+asyncpg://{rest}" if scheme in {"postgresql", "postgres"} else url


class Database:
    """Read and write transactions on SQLite or PostgreSQL.

    Writes on SQLite begin with BEGIN IMMEDIATE: a deferred one fails at once when it meets another writer, whatever
    the busy timeout.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self._clock = clock
        self._is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._engine: AsyncEngine = create_async_engine(url, **(_sqlite_driver(url) if self._is_sqlite else {}))
        if self._is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        self._writer = self._engine.execution_options(moorage_write=True)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction that sees one state of the database."""
        async with self._engine.connect() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection that sees one moment of the database for as long as it is used, and can't write."""
        options = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        async with self._engine.connect() as connection:
            await connection.execution_options(**options)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a write transaction: committed at the end, rolled back on any error."""
        async with self._writer.begin() as connection:
            yield connection

    async def now(self, connection: AsyncConnection) -> datetime:
        """Return the time that all controllers share: PostgreSQL's own, else the clock's. Aware, in UTC."""
        if self._is_sqlite:
            return self._clock.now()
        now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return now

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def _sqlite_driver(url: str) -> dict[str, Any]:
    path = make_url(url).database
    assert path is not None
    return {"async_creator": partial(sqlite.connect, path)}


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own idea of when a transaction begins is switched off; `_begin_sqlite` says when.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("moorage_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
