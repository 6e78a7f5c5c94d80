"""Health check of the controller."""

import asyncio
from collections.abc import Callable, Sequence

from sqlalchemy import text

from moorage_controller.errors import DatabaseUnavailableError
from moorage_controller.store.database.database import Database

_ANSWER_SECONDS = 5.0


class Health:
    """Checks the database and the background loops; `dead_loops` returns the names of loops that are not alive."""

    def __init__(self, database: Database, dead_loops: Callable[[], Sequence[str]]) -> None:
        self._database = database
        self._dead_loops = dead_loops

    async def problems(self) -> list[str]:
        """Return a sentence for each problem."""
        found = [f"The background work {name} is not running." for name in self._dead_loops()]
        try:
            # A broken network causes no error, only silence: hence the timeout.
            async with asyncio.timeout(_ANSWER_SECONDS), self._database.read() as connection:
                await connection.execute(text("SELECT 1"))
        except (DatabaseUnavailableError, TimeoutError):
            found.append("The database doesn't answer.")
        return found
