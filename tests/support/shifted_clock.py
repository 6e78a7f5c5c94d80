"""A clock that runs with the machine's and can be shifted ahead, for tests with real hosts."""

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta


class ShiftedClock:
    """The machine's clock plus an offset; `shift` wakes all sleepers to check the time again."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._shifted = asyncio.Event()

    def shift(self, seconds: float) -> None:
        """Move wall and monotonic time ahead."""
        self._offset += seconds
        self._shifted.set()
        self._shifted = asyncio.Event()

    def now(self) -> datetime:
        """Return the wall time."""
        return datetime.now(UTC) + timedelta(seconds=self._offset)

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic() + self._offset

    def awake(self) -> float:
        """Return monotonic seconds: it is never suspended."""
        return self.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep until this clock has advanced by that much."""
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._shifted.wait(), left)
