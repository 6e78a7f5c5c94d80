"""The database: one engine, read and write transactions, and the authoritative time."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from moorage_common.clock import Clock
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from moorage_controller.errors import DatabaseUnavailableError, StartupError
from moorage_controller.signals import DurationSample, Signal
from moorage_controller.store.database import postgresql, sqlite
from moorage_controller.store.database.unavailable import translate_db_errors
from moorage_controller.store.database.write_priority import WriteScheduler

_BUSY_MILLISECONDS = 10_000
_CONNECTIONS = 10
"""Pool size. Opening a connection takes longer than most transactions."""
_READERS = 3


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite database file."""
    return f"sqlite+aiosqlite:///{path}"


def postgresql_url(url: str) -> str:
    """Add the driver to a `postgresql://` (as in docs/operations.md) or `postgres://` URL."""
    _, _, rest = url.partition("://")
    return f"{postgresql.DRIVER}://{rest}"


class Database:
    """Read and write transactions on SQLite or PostgreSQL; both raise DatabaseUnavailableError.

    Write transactions are serialized on both, so that data read in one stays valid until its commit. Do not wait for a
    host or hash a password in one. On SQLite they begin with BEGIN IMMEDIATE, as a deferred transaction fails
    immediately on another writer, despite the busy timeout. On PostgreSQL they take an advisory lock that all
    controllers share. With `clock_decides`, `now` uses the clock on PostgreSQL too, for tests that move it.
    """

    def __init__(self, url: str, clock: Clock, *, clock_decides: bool = False) -> None:
        self.sqlite_path = Path(make_url(url).database or "") if url.startswith("sqlite") else None
        self.written: Signal[None] = Signal()
        """A write transaction of this controller ended, possibly with changes; other controllers may write as well."""
        self.used: Signal[DurationSample] = Signal()
        """A `read` or `write` transaction ended: `ok`, `failed` or `unavailable`; its duration includes the wait."""
        self._clock = clock
        self._clock_decides = clock_decides
        self._engine: AsyncEngine
        if self.sqlite_path is None:
            self._engine = create_async_engine(f"{postgresql.DRIVER}://", **postgresql.options(url))
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            creator = partial(sqlite.connect, str(self.sqlite_path))
            self._engine = self._reader = create_async_engine(url, async_creator=creator, pool_size=_CONNECTIONS)
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        # A waiting writer holds a connection, and SQLite waits by sleeping: so only one per controller waits.
        self._turn = asyncio.Lock()
        self._writing, self._reading = WriteScheduler(1), WriteScheduler(_READERS)
        self._writer = self._engine.execution_options(moorage_write=True)
        self._migrator = self._engine.execution_options(moorage_write=True, moorage_migrate=True)

    @property
    def is_shared(self) -> bool:
        """Whether other controllers may share the database."""
        return self.sqlite_path is None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a read-only transaction with a consistent snapshot."""
        with self._timed("read"), translate_db_errors():
            async with self._reading.taken(), self._reader.begin() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a write transaction: committed at the end, rolled back on any error."""
        async with self._begun(self._writer) as connection:
            yield connection
        self.written.emit(None)

    @asynccontextmanager
    async def migrate(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a write transaction for schema changes.

        On SQLite, tables are recreated, which would cascade through foreign keys as a deletion of all rows. So they
        are off during the migration, and checked before the commit. Raises StartupError for a broken reference.
        """
        try:
            async with self._begun(self._migrator) as connection:
                yield connection
                if self.sqlite_path is not None:
                    broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).mappings().first()
                    if broken is not None:
                        table, parent = broken["table"], broken["parent"]
                        sentence = f"The database has a row in {table} whose {parent} isn't there: restore a backup."
                        raise StartupError("broken_reference", sentence)
        finally:
            # Its connection, with foreign keys off, must not be reused.
            await self._engine.dispose()
        self.written.emit(None)

    @asynccontextmanager
    async def _begun(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        with self._timed("write"), translate_db_errors():
            async with self._writing.taken(), self._turn, engine.begin() as connection:
                if self.sqlite_path is None:
                    await postgresql.admit(connection)
                yield connection

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun, result = time.monotonic(), "failed"
        try:
            yield
            result = "ok"
        except DatabaseUnavailableError:
            result = "unavailable"
            raise
        finally:
            self.used.emit(DurationSample(what, result, time.monotonic() - begun))

    async def now(self, connection: AsyncConnection) -> datetime:
        """Return the time that all controllers share: PostgreSQL's time, else the clock's. Aware, in UTC."""
        if self._clock_decides or self.sqlite_path is not None:
            return self._clock.now()
        return await postgresql.now(connection)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # Turn off the driver's implicit transactions; `_begin_sqlite` begins them.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("moorage_migrate", False):
        # Before BEGIN: within a transaction this has no effect.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("moorage_write", False) else "BEGIN")
