"""Output writer: store an operation's output in the database in batches, without a transaction per line."""

import asyncio
from uuid import UUID

import structlog
from moorage_common.clock import Clock
from moorage_common.compose.output import render_end
from moorage_common.untrusted import LIMITS

from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import output as store
from moorage_controller.store.tables.output import Piece

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 0.2
_MOST_WAITING = 512 * 1024
_LOGGED_BYTES = 4096
"""Bytes of the output's end to log. The output itself is in the database."""


class OutputWriter:
    """Stores added output at most five times a second. A failed write loses nothing: the host keeps the output."""

    def __init__(self, database: Database, signals: Signals, clock: Clock, operation_id: UUID) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._operation_id = operation_id
        self._waiting = bytearray()
        self._start = 0
        self._kept_at = -_EVERY_SECONDS
        self._keeping = asyncio.Lock()
        self._end = b""
        self._is_full = False
        self._later: asyncio.Task[None] | None = None

    async def open(self) -> int:
        """Return the offset to continue from, after the output that an earlier controller stored."""
        async with self._database.read() as connection:
            self._start = await store.length(connection, self._operation_id)
        self._is_full = self._start > LIMITS.output
        return self._start

    async def add(self, data: bytes) -> None:
        """Add the next part; beyond 64 MiB only a remark is stored.

        Raises DatabaseUnavailableError, at the latest when the next part is added.
        """
        room = max(LIMITS.output - self._start - len(self._waiting), 0)
        if len(data) > room:
            remark = b"" if self._is_full else b"\n[More than 64 MiB of output: the rest is left out.]\n"
            data, self._is_full = data[:room] + remark, True
            if not data:
                return
        self._waiting += data
        self._end = (self._end + data)[-_LOGGED_BYTES:]
        if self._later is not None and self._later.done():
            self._later.result()
            self._later = None
        if len(self._waiting) > _MOST_WAITING:
            await self._flush()
        elif self._later is None:
            self._later = asyncio.create_task(self._schedule_flush())

    async def close(self) -> None:
        """Store the remaining output. Raises DatabaseUnavailableError."""
        await self.drop()
        await self._flush()
        log.info("operation_output", end=render_end(self._end, _LOGGED_BYTES), bytes=self._start)

    async def drop(self) -> None:
        """Stop without storing the rest: the controller that recovers the operation reads it from the host again."""
        later, self._later = self._later, None
        if later is not None:
            later.cancel()
            await asyncio.gather(later, return_exceptions=True)

    async def tail(self, size: int) -> bytes:
        """Return the last `size` stored bytes."""
        async with self._database.read() as connection:
            return await store.tail(connection, self._operation_id, size)

    async def _schedule_flush(self) -> None:
        await self._clock.sleep(max(self._kept_at + _EVERY_SECONDS - self._clock.monotonic(), 0.0))
        await self._flush()

    async def _flush(self) -> None:
        async with self._keeping:
            data = bytes(self._waiting)
            if not data:
                return
            async with self._database.write() as connection:
                await store.append(connection, self._operation_id, Piece(self._start, data))
            # Only after the commit: data of a failed transaction is still pending.
            del self._waiting[: len(data)]
            self._start += len(data)
            self._kept_at = self._clock.monotonic()
        self._signals.output_kept.emit(self._operation_id)
