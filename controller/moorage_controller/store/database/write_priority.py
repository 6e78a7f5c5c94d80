"""Who gets the database next: people first, then what must not be late, then what may wait."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from enum import IntEnum


class Priority(IntEnum):
    """How urgent a task's work is; the lower the sooner. Set it in a task of its own, at its begin."""

    INTERACTIVE = 0
    """Somebody waits for it."""
    DEADLINE = 1
    """It has its time: a stop that is due."""
    BACKGROUND = 2
    """It may wait: what is found and told, and what was due and is done."""


priority: ContextVar[Priority] = ContextVar("urgency", default=Priority.INTERACTIVE)


class WriteScheduler:
    """Lets so many at once of those who can wait; the most urgent first, else in the order in which they came.

    Who is asked for isn't counted: however much there is to be done, he waits for a few of the others at most.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._count = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a turn, by this task's urgency; give it back at the end."""
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
            # Given a turn in the very moment in which it was called off: the next one has it.
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
