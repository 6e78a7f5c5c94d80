"""Auto-stop: each run is stopped when its time is over, and again until nothing of it is left."""

import asyncio
import random
from uuid import UUID

import structlog
from moorage_common.clock import Clock, wait_for

from moorage_controller.services.apps import Apps
from moorage_controller.signals import Signals
from moorage_controller.store import apps as store
from moorage_controller.store.engine import Database

log = structlog.get_logger(__name__)

_LONGEST_SLEEP = 30.0
"""Even without a hint or a deadline it looks again: a clock that jumped must not delay it for long."""
_FIRST_RETRY, _LAST_RETRY = 2.0, 60.0
_FORGET_SECONDS = 3600.0


class AutoStop:
    """Claims the runs that are over and has each stopped by the same service as a user's stop."""

    def __init__(self, database: Database, apps: Apps, signals: Signals, clock: Clock) -> None:
        self._database = database
        self._apps = apps
        self._clock = clock
        self._wake = asyncio.Event()
        # A run that could not be stopped yet: how often it was tried, and when (monotonic) it is next.
        self._tries: dict[UUID, tuple[int, float]] = {}
        signals.deadlines_changed.connect(lambda _: self._wake.set())
        signals.host_back.connect(self._on_host_back)

    async def run(self) -> None:
        """Tick at every deadline and after every change, for ever."""
        while True:
            await wait_for(self._wake, await self.tick(), self._clock)

    async def tick(self) -> float:
        """Begin the stop of all that is due now, and return in how many seconds to look again."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            due = await store.due(connection, now)
            next_stop_at = await store.next_stop_at(connection, now)
        self._forget_old_tries()
        for app in due:
            assert app.run_id is not None
            tries, not_before = self._tries.get(app.run_id, (0, 0.0))
            if not_before > self._clock.monotonic():
                continue
            retry = min(_FIRST_RETRY * 2**tries, _LAST_RETRY) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            self._tries[app.run_id] = (tries + 1, self._clock.monotonic() + retry)
            operation = await self._apps.auto_stop(app)
            if operation is not None:
                log.info("auto_stop_begun", app_id=str(app.id), operation_id=str(operation.id), attempt=tries + 1)
        # A host that came back meanwhile took its tries away: those are due at once.
        tried = [self._tries[app.run_id] for app in due if app.run_id in self._tries]
        waits = [not_before - self._clock.monotonic() for _, not_before in tried]
        if len(tried) < len(due):
            waits.append(0.0)
        if next_stop_at is not None:
            waits.append((next_stop_at - now).total_seconds())
        return max(min([*waits, _LONGEST_SLEEP]), 0.0)

    def _forget_old_tries(self) -> None:
        """Drop the runs that were stopped long ago. One whose stop is in flight is not due, but must be kept."""
        old = self._clock.monotonic() - _FORGET_SECONDS
        self._tries = {run_id: tried for run_id, tried in self._tries.items() if tried[1] > old}

    def _on_host_back(self, _: UUID) -> None:
        self._tries.clear()
        self._wake.set()
