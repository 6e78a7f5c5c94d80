"""History retention: remove old operations, their output, and change numbers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import changes, last_logs, operations, output

log = structlog.get_logger(__name__)

_BATCH_SIZE = 100
"""Rows per transaction; keeps write locks short."""
_CHANGES = 100_000
"""Changes to keep. A listener that missed more than that reads the lists again."""


@dataclass(frozen=True, slots=True)
class Keeps:
    """Retention limits: age and maximum count of ended operations, and age of their output.

    `output` applies to the last log lines of stopped apps as well.
    """

    operations: timedelta
    most_operations: int
    output: timedelta


class History:
    """Removes old history. Operations in flight are always kept."""

    def __init__(self, database: Database, keeps: Keeps) -> None:
        self._database = database
        self._keeps = keeps

    async def forget_old(self) -> None:
        """Remove history that is too old. Raises DatabaseUnavailableError; the rest is removed by a later call."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
        before = now - self._keeps.operations
        gone = await self._all(
            lambda connection: operations.remove_old(connection, before, self._keeps.most_operations, _BATCH_SIZE)
        )
        pieces = await self._all(
            lambda connection: output.remove_old(connection, now - self._keeps.output, _BATCH_SIZE)
        )
        async with self._database.write() as connection:
            await last_logs.remove_old(connection, now - self._keeps.output)
            await changes.remove_old(connection, _CHANGES)
        if gone or pieces:
            log.info("history_forgotten", operations=gone, pieces_of_output=pieces)

    async def _all(self, remove: Callable[[AsyncConnection], Awaitable[int]]) -> int:
        removed = 0
        while True:
            async with self._database.write() as connection:
                count = await remove(connection)
            removed += count
            if not count:
                return removed
