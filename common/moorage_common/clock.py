"""The one place that asks what time it is. Tests pass another clock and move it."""

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people see and the database keeps; monotonic seconds for limits and waits."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point, never going back; they pass while the machine is suspended too."""

    def awake(self) -> float:
        """Return what `monotonic` does, but for the time for which the machine was suspended."""

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
    """Return a fifth more or less, by chance: those who failed together don't all come again together."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - nothing secret hangs on it


def backoff(tries: int, first: float, last: float) -> float:
    """Return the seconds to wait after so many tries: `first` after none, twice as long each time, `last` at most."""
    # Days of trying are no number that a float can't hold.
    return min(first * 2.0 ** min(tries, 64), last)


async def wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> None:
    """Return when the event is set or that much time of the clock has passed; the event is cleared."""
    tasks = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    event.clear()
