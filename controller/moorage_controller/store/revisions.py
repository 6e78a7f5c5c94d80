"""Whether anything was written since last time, without asking for the rows."""

from pathlib import Path

from moorage_controller.store import sqlite


class Revisions:
    """The number of SQLite's last commit, by whomever, as one connection that never writes sees it.

    It counts commits of other processes too, and none can be missed: a commit that was cut in the middle counts as
    soon as it holds. On PostgreSQL (`path` None) there is no such number, and `current` says so.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite.Connection | None = None

    async def open(self) -> None:
        """Connect; the number is this connection's own, and means nothing to another."""
        if self._path is not None:
            self._connection = await sqlite.connect(str(self._path))

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def current(self) -> int | None:
        """Return the number: ask it before the rows, never after. None where every reading must look at the rows."""
        if self._connection is None:
            return None
        rows = list(await self._connection.execute_fetchall("PRAGMA data_version"))
        number: int = rows[0][0]
        return number
