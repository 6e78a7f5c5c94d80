"""Database priorities: interactive requests first, then deadlines, then background work."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from enum import IntEnum


class Priority(IntEnum):
    """Priority of a task's work; lower values go first. Set it at the start of a task of its own."""

    INTERACTIVE = 0
    """A caller waits for it."""
    DEADLINE = 1
    """Time-critical: a stop that is due."""
    BACKGROUND = 2
    """It may wait: observations, notifications, and the follow-up of due stops."""


priority: ContextVar[Priority] = ContextVar("urgency", default=Priority.INTERACTIVE)


class WriteScheduler:
    """Priority queue with a concurrency limit; tasks of equal priority go in FIFO order.

    Interactive tasks bypass it and aren't counted, so they wait for at most a few other tasks under any load.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._count = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Acquire a slot by this task's priority; release it at the end."""
        if priority.get() is Priority.INTERACTIVE:
            yield
            return
        await self._take()
        try:
            yield
        finally:
            self._give()

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (priority.get(), self._count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # The slot was granted at the moment of the cancellation: pass it on.
            if turn.done() and not turn.cancelled():
                self._give()
            raise

    def _give(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
