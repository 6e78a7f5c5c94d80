"""Whether anything was written since last time, without asking for the rows."""

from sqlalchemy import Text, cast, func, select

from moorage_controller.store.database import sqlite
from moorage_controller.store.database.database import Database


class DatabaseVersion:
    """A word for the state of the database: the same word, the same rows, whoever writes, from whichever process.

    On SQLite it is the number of the last commit, as one connection that never writes sees it: a commit that was cut
    in the middle counts as soon as it holds. On PostgreSQL it is the snapshot: which transactions are seen to have
    ended is all that decides which rows are seen. Either also changes for what has nothing to do with a list.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite.Connection | None = None

    async def open(self) -> None:
        """Connect; SQLite's number is this connection's own, and means nothing to another."""
        if self._database.sqlite_path is not None:
            self._connection = await sqlite.connect(str(self._database.sqlite_path))

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def current(self) -> str:
        """Return the word: ask for it before the rows, never after."""
        if self._connection is not None:
            rows = list(await self._connection.execute_fetchall("PRAGMA data_version"))
            return str(rows[0][0])
        async with self._database.read() as connection:
            word: str = (await connection.execute(select(cast(func.pg_current_snapshot(), Text())))).scalar_one()
        return word
