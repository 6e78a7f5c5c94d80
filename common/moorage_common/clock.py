"""The only source of the time. Tests pass their own clock and advance it."""

import asyncio
import random
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Wall time for display and for the database; monotonic seconds for limits and waits."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point, never going back; they pass while the machine is suspended too."""

    def awake(self) -> float:
        """Return seconds as `monotonic` does, without suspended time."""

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds of this clock."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since boot, suspended time included: a laptop lid must not stretch a deadline."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def awake(self) -> float:
        """Return seconds since boot, suspended time left out."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    async def sleep(self, seconds: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)


def to_millis(moment: datetime) -> int:
    """Return an aware datetime as epoch milliseconds, the API's form of a time."""
    return round(moment.timestamp() * 1000)


def from_millis(millis: int) -> datetime:
    """Return epoch milliseconds as an aware datetime in UTC."""
    return datetime.fromtimestamp(millis / 1000, UTC)


def jittered(seconds: float) -> float:
    """Return the value with random jitter of up to a fifth: clients that failed together don't retry together."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - not security-relevant


def backoff(tries: int, first: float, last: float) -> float:
    """Return the seconds to wait after that many tries: `first` after none, doubled each time, `last` at most."""
    # The exponent is bounded: after days of retries the power would overflow a float.
    return min(first * 2.0 ** min(tries, 64), last)


async def wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> None:
    """Wait for the event, or for that much time of the clock; clear the event."""
    tasks = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    event.clear()


async def within(seconds: float, work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """Return the result of `work`. Raises TimeoutError after that much time of the clock, and cancels it."""
    task, timer = asyncio.ensure_future(work), asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError
        return await task
    finally:
        task.cancel()
        timer.cancel()
        await asyncio.gather(task, timer, return_exceptions=True)
