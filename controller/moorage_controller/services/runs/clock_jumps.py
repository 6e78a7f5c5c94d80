"""Clock jump detection: if the clock behind deadlines is set, shift all deadlines, so that runs keep their length.

The clock is compared with the time since boot, which can't be set and includes suspend. A suspended machine is no
jump: real time has passed, and runs whose deadline passed in it are over.
"""

import asyncio
from datetime import timedelta

import structlog
from moorage_common.clock import Clock

from moorage_controller.services.operations.leases import Leases
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps, operations

log = structlog.get_logger(__name__)

_TOLERANCE = 1.0


class ClockJumpGuard:
    """Checks the clock before deadlines are read."""

    def __init__(self, database: Database, clock: Clock, leases: Leases) -> None:
        self._database = database
        self._clock = clock
        self._leases = leases
        self._base: float | None = None
        """Clock time at boot, in seconds since the epoch."""
        self._asleep: float | None = None
        self._looking = asyncio.Lock()

    async def check(self) -> None:
        """Detect a clock jump and shift all deadlines by it. Raises DatabaseUnavailableError."""
        async with self._looking:
            self._notice_sleep()
            before = self._clock.monotonic()
            async with self._database.read() as connection:
                shown = (await self._database.now(connection)).timestamp()
            earliest, latest = shown - self._clock.monotonic(), shown - before
            if self._base is None:
                self._base = latest
            nearest = min(max(self._base, earliest), latest)
            jump = nearest - self._base
            if abs(jump) > _TOLERANCE:
                await self._shift(timedelta(seconds=jump))
            # Follow drift within the tolerance: two clocks never run at exactly the same rate.
            self._base = nearest

    async def _shift(self, jump: timedelta) -> None:
        async with self._database.write() as connection:
            if await self._leases.peers_use_current_time(connection):
                log.warning("clock_differs", seconds=jump.total_seconds(), shifted=False)
                return
            count = await apps.shift_runs(connection, jump)
            await operations.shift_deadlines(connection, jump)
        log.warning("clock_jumped", seconds=jump.total_seconds(), shifted=True, runs=count)

    def _notice_sleep(self) -> None:
        asleep = self._clock.monotonic() - self._clock.awake()
        if self._asleep is not None and asleep - self._asleep > _TOLERANCE:
            log.warning("machine_was_suspended", seconds=round(asleep - self._asleep, 1))
        self._asleep = asleep
