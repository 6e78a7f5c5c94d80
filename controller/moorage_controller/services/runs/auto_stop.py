"""Auto-stop: stop each run at its deadline, and retry until none of its containers is left."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from moorage_common.clock import Clock, backoff, jittered, wait_for

from moorage_controller.services.runs.clock_jumps import ClockJumpGuard
from moorage_controller.services.runs.run_expiry import OVERDUE_AFTER, RunExpiry
from moorage_controller.signals import Signals
from moorage_controller.store.tables.apps import App, DueApp

log = structlog.get_logger(__name__)

_LONGEST_SLEEP = 30.0
"""Seconds between two polls at most, so that a clock jump delays a stop only briefly."""
_FIRST_RETRY, _LAST_RETRY = 2.0, 60.0
_OFFLINE_RETRY = 600.0
"""Retry interval in seconds for an offline host; the stop is retried immediately when the host is back."""
_FORGET_SECONDS = 3600.0
_HEAR_SECONDS = 10.0
"""Start-up grace period in seconds, in which agents report the stops they made by themselves."""


@dataclass(frozen=True, slots=True)
class _RetryState:
    """Retry state of a run that could not be stopped yet; `not_before` is the monotonic time of the next try.

    `offline`: its host was known to be offline, so the long retry interval applies.
    """

    server_id: UUID
    count: int
    not_before: float
    offline: bool

    def is_backing_off(self, now: float, *, online: bool) -> bool:
        """Return whether the next try is not due yet; a host that is online again ends an offline wait."""
        return self.not_before > now and not (self.offline and online)


class AutoStop:
    """Stops due runs with the same operations as a user's stop, and warns users beforehand."""

    def __init__(self, ends: RunExpiry, timekeeper: ClockJumpGuard, signals: Signals, clock: Clock) -> None:
        self._ends = ends
        self._looked = signals.auto_stop_polled
        self._timekeeper = timekeeper
        self._clock = clock
        self._wake = asyncio.Event()
        self._tries: dict[UUID, _RetryState] = {}
        self._began = clock.monotonic()
        self._heard: set[UUID] = set()
        signals.host_seen.connect(self._on_host_seen)
        signals.deadline_moved.connect(lambda _: self._wake.set())
        signals.host_back.connect(self._on_host_back)

    async def run(self) -> None:
        """Tick at every deadline and after every change, until cancelled."""
        while True:
            await wait_for(self._wake, await self.tick(), self._clock)

    async def tick(self) -> float:
        """Begin the stop of all due runs, and return the seconds until the next tick."""
        await self._timekeeper.check()
        ends = await self._ends.poll()
        self._looked.emit(None)
        self._forget_old_tries()
        waits = [] if self._startup_grace_over else [1.0]
        await self._stop(
            [due for due in ends.due if self._startup_grace_over or not self._agent_may_have_stopped(due, ends.now)]
        )
        if ends.to_warn:
            await self._ends.warn()
        if ends.overdue:
            await self._ends.mark_overdue()
        # A host that came back in the meantime cleared its retry states: those runs are due immediately.
        tried = [self._tries[due.app.run_id] for due in ends.due if due.app.run_id in self._tries]
        waits += [each.not_before - self._clock.monotonic() for each in tried]
        if len(tried) < len(ends.due) and self._startup_grace_over:
            waits.append(0.0)
        if ends.next_at is not None:
            waits.append((ends.next_at - ends.now).total_seconds())
        return max(min([*waits, _LONGEST_SLEEP]), 0.0)

    async def _stop(self, due: Sequence[DueApp]) -> None:
        wanted: list[App] = []
        for each in due:
            assert each.app.run_id is not None
            now, tried = self._clock.monotonic(), self._tries.get(each.app.run_id)
            if tried is not None and tried.is_backing_off(now, online=each.online):
                continue
            count, retry = 0, _OFFLINE_RETRY
            if each.online:
                count = 0 if tried is None else tried.count
                retry = backoff(count, _FIRST_RETRY, _LAST_RETRY)
            # No operation is recorded at first for an offline host: the overdue mark reports it once.
            if each.online or tried is not None:
                wanted.append(each.app)
            self._tries[each.app.run_id] = _RetryState(
                each.app.server_id, count + 1, now + jittered(retry), not each.online
            )
        for operation in await self._ends.stop(wanted):
            log.info("auto_stop_begun", app_id=str(operation.app_id), operation_id=str(operation.id))

    @property
    def _startup_grace_over(self) -> bool:
        """Whether the start-up grace period, in which agents report their own stops, is over."""
        return self._clock.monotonic() - self._began >= _HEAR_SECONDS

    def _agent_may_have_stopped(self, due: DueApp, now: datetime) -> bool:
        assert due.app.stop_at is not None
        return due.kept and due.app.server_id not in self._heard and now - due.app.stop_at >= OVERDUE_AFTER

    def _on_host_seen(self, server_id: UUID) -> None:
        if not self._startup_grace_over:
            self._heard.add(server_id)
            self._wake.set()

    def _forget_old_tries(self) -> None:
        """Drop retry states of runs stopped long ago. A run whose stop is in flight is not due, but keeps its state."""
        old = self._clock.monotonic() - _FORGET_SECONDS
        self._tries = {run_id: tried for run_id, tried in self._tries.items() if tried.not_before > old}

    def _on_host_back(self, server_id: UUID) -> None:
        self._tries = {run_id: tried for run_id, tried in self._tries.items() if tried.server_id != server_id}
        self._wake.set()
