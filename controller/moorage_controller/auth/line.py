"""A bounded queue in front of a few threads, for password hashing, which takes a quarter of a second of CPU time.

Known callers go first. Each unknown caller is limited to a share of the places. If the queue is full, further calls
fail immediately with a time to retry, so that neither waiting time nor memory grows with the number of callers.
"""

import asyncio
import math
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from moorage_controller.errors import TooManyRequestsError

T = TypeVar("T")

_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Half of the processors; the others serve all other requests."""
_MOST = {True: 96, False: 32}
"""Limit of waiting calls, by whether the caller is known: some seconds' work."""
_MOST_OF_ONE = {True: 24, False: 12}
"""Limit of waiting and running calls with the same share."""
_FIRST_GUESS_SECONDS = 0.3
_RECENT = 0.2
"""Weight of the newest call in the average duration."""


@dataclass(frozen=True, slots=True)
class Place:
    """A caller's position: callers with the same `share` have a common limit; `known` ones go first."""

    share: str
    known: bool


class Line:
    """Limits concurrent calls, with a bounded number of waiting ones. Close it at the end."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._idle = threads
        self._known: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._shares: Counter[str] = Counter()
        self._seconds = _FIRST_GUESS_SECONDS

    def check(self, place: Place) -> None:
        """Raise TooManyRequestsError if the queue has no place."""
        waiting = len(self._known if place.known else self._others)
        if self._shares[place.share] >= _MOST_OF_ONE[place.known] or waiting >= _MOST[place.known]:
            seconds = max(1, math.ceil((waiting + 1) * self._seconds / self._threads))
            raise TooManyRequestsError(f"Too many logins at once: try again in {seconds} s.", seconds)

    async def run(self, place: Place, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result. Raises TooManyRequestsError if the queue has no place."""
        self.check(place)
        waiting = self._known if place.known else self._others
        self._shares[place.share] += 1
        try:
            await self._turn(waiting)
            loop = asyncio.get_running_loop()
            began = loop.time()
            done = self._pool.submit(work)
            # The end of the thread's work counts: a cancelled caller must not free its thread too early.
            done.add_done_callback(lambda _: _call_in_loop(loop, self._next))
            found = await asyncio.wrap_future(done)
            self._seconds += (loop.time() - began - self._seconds) * _RECENT
            return found
        finally:
            self._shares[place.share] -= 1
            if not self._shares[place.share]:
                del self._shares[place.share]

    async def aclose(self) -> None:
        """Wait for running work."""
        await asyncio.to_thread(self._pool.shutdown)

    async def _turn(self, waiting: deque[asyncio.Future[None]]) -> None:
        if self._idle:
            self._idle -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()
            elif turn in waiting:
                waiting.remove(turn)
            raise

    def _next(self) -> None:
        for waiting in (self._known, self._others):
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._idle += 1


def _call_in_loop(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    # At the program's end no caller waits any more.
    if not loop.is_closed():
        loop.call_soon_threadsafe(what)
