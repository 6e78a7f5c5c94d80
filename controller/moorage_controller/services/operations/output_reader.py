"""Output reader: read operations' output from the database, as a whole or live, on any controller."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

from moorage_common.clock import Clock, wait_for
from moorage_common.compose.output import render_end

from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import operations as operation_store
from moorage_controller.store.tables import output as store
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.output import Piece

TAIL_BYTES = 64 * 1024
_POLL_SECONDS = 0.5
"""Poll interval for output that another controller stores; this controller's own output is notified immediately."""


class OutputReader:
    """Serves output at each reader's pace: a slow reader delays nobody and takes no memory."""

    def __init__(self, database: Database, signals: Signals, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._listening: dict[UUID, set[asyncio.Event]] = {}
        signals.output_kept.connect(self._wake)
        signals.operation_ended.connect(self._wake)

    async def text(self, operation_id: UUID) -> str:
        """Return the last 64 KiB as readable lines, with a remark if the output is longer."""
        async with self._database.read() as connection:
            data = await store.tail(connection, operation_id, TAIL_BYTES)
        return render_end(data, TAIL_BYTES)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Piece | Operation, None]:
        """Yield the pieces from a byte offset on as they arrive, then the operation once it has ended.

        If the operation is deleted, the iteration ends without it. Raises DatabaseUnavailableError.
        """
        stirred = asyncio.Event()
        self._listening.setdefault(operation_id, set()).add(stirred)
        try:
            while True:
                # In one transaction: if the operation has ended, the output is complete.
                async with self._database.read() as connection:
                    operation = await operation_store.get(connection, operation_id)
                    piece = await store.after(connection, operation_id, after)
                if operation is None:
                    return
                if piece is not None:
                    yield piece
                    after = piece.stop
                elif operation.in_flight:
                    await wait_for(stirred, _POLL_SECONDS, self._clock)
                else:
                    yield operation
                    return
        finally:
            listening = self._listening[operation_id]
            listening.discard(stirred)
            if not listening:
                del self._listening[operation_id]

    def _wake(self, operation_id: UUID) -> None:
        for stirred in self._listening.get(operation_id, ()):
            stirred.set()
