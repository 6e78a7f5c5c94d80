"""Database version: detect whether anything was written, without reading rows."""

from sqlalchemy import Text, cast, func, select

from moorage_controller.store.database import sqlite
from moorage_controller.store.database.database import Database


class DatabaseVersion:
    """A token for the state of the database: equal tokens mean equal rows, across all processes that write.

    On SQLite it is PRAGMA data_version on a connection that never writes; an interrupted commit counts once it is
    durable. On PostgreSQL it is the current snapshot, which determines the visible rows. Either also changes with
    writes to unrelated tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite.Connection | None = None

    async def open(self) -> None:
        """Connect; SQLite's data_version is valid only for the same connection."""
        if self._database.sqlite_path is not None:
            self._connection = await sqlite.connect(str(self._database.sqlite_path))

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def current(self) -> str:
        """Return the token; call it before reading the rows, never after."""
        if self._connection is not None:
            rows = list(await self._connection.execute_fetchall("PRAGMA data_version"))
            return str(rows[0][0])
        async with self._database.read() as connection:
            word: str = (await connection.execute(select(cast(func.pg_current_snapshot(), Text())))).scalar_one()
        return word
