"""Whether the controller can do its work."""

from collections.abc import Callable, Sequence

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from moorage_controller.store.engine import Database


class Health:
    """Asks the parts; `dead_loops` names the background loops that are not alive."""

    def __init__(self, database: Database, dead_loops: Callable[[], Sequence[str]]) -> None:
        self._database = database
        self._dead_loops = dead_loops

    async def problems(self) -> list[str]:
        """Return a sentence for each part that isn't well."""
        found = [f"The background work {name} is not running." for name in self._dead_loops()]
        try:
            async with self._database.read() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError):
            found.append("The database doesn't answer.")
        return found
