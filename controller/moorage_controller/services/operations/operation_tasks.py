"""Operation tasks: drive each recorded operation to its end, in a task of its own, and record that end."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID

import structlog
from moorage_common.clock import Clock

from moorage_controller.hosts.transport import Hosts
from moorage_controller.services.audit.audit import record_auto_stop
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.services.operations.operation_runner import Limits, OperationRunner
from moorage_controller.services.operations.queue import Admission, Queue
from moorage_controller.services.operations.waiting_stops import Repeats
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.transitions import Outcome
from moorage_controller.signals import OperationFinished, Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.write_priority import Priority, priority
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.operations import Operation

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 2.0

Driver = Callable[[Operation], Awaitable[Outcome]]
"""Drives an operation to its end, also one that a controller that died left in flight."""


class OperationTasks:
    """The operations that this controller drives; each end updates its app in the same transaction."""

    def __init__(
        self,
        database: Database,
        hosts: Hosts,
        observations: Observations,
        signals: Signals,
        clock: Clock,
        *,
        limits: Limits,
        queue: Queue,
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._observations = observations
        self._signals = signals
        self._clock = clock
        self._limits = limits
        self._queue = queue
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._drivers: dict[str, Driver] = {}
        self.repeats = Repeats()

    def register_runner(self, kinds: Iterable[str], driver: Driver) -> None:
        """Register the driver for operations of kinds that don't concern an app."""
        self._drivers |= dict.fromkeys(kinds, driver)

    def launch(self, operation: Operation, *, recovered: bool = False) -> None:
        """Start the task that drives a recorded operation; call it after the commit.

        `recovered`: it may already have been sent to its host, as a running one was, or be missing in the database.
        """
        recovered = recovered or operation.waits_for_host or operation.state == "running"
        task = asyncio.create_task(self._drive(operation, recovered=recovered), name=f"operation {operation.id}")
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))

    def of(self, operation_id: UUID) -> asyncio.Task[None] | None:
        """Return the task of an operation; None if this controller doesn't drive it."""
        return self._tasks.get(operation_id)

    async def close(self) -> None:
        """Cancel all driving tasks; the operations continue on their hosts and are recovered at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, operation: Operation, *, recovered: bool) -> None:
        """Drive an operation to its end, with retries after any failure, until cancelled."""
        if operation.auto_stop:
            priority.set(Priority.DEADLINE)
        with structlog.contextvars.bound_contextvars(operation_id=str(operation.id)):
            async with AsyncExitStack() as stack:
                turn = Admission()
                if operation.kind not in self._drivers:
                    turn = await self._queue.admit(operation, stack)
                while True:
                    try:
                        found = await self._in_flight(operation.id) if recovered else operation
                        if found is not None:
                            await self._work(found, turn, recovered=recovered)
                    except Exception:
                        # A full disk or a temporarily unavailable database must not lose an operation.
                        log.exception("operation_drive_failed")
                        recovered = True
                        await self._clock.sleep(_RETRY_SECONDS)
                    else:
                        return

    async def _work(self, operation: Operation, turn: Admission, *, recovered: bool) -> None:
        driver, begun = self._drivers.get(operation.kind), self._clock.monotonic()
        if driver is not None:
            outcome = await driver(operation)
            await self._finish_other(operation, outcome, self._clock.monotonic() - begun)
            return
        if turn.cancelled_by:
            sentence = f"The operation was cancelled by {turn.cancelled_by} before it began."
            outcome = Outcome("cancelled", ran=False, error_code="operation_cancelled", error=sentence)
        else:
            if turn.late and operation.state == "queued":
                operation = await self._begin_late(operation)
            delivery = OperationRunner(self._database, self._hosts, self._signals, self._clock, operation, self._limits)
            outcome = await delivery.run(recovered=recovered)
        # The duration of an operation begun by another controller is unknown here.
        await self._finish(operation, outcome, None if recovered else self._clock.monotonic() - begun)

    async def _begin_late(self, operation: Operation) -> Operation:
        """Start an operation's time limit at the end of its wait in the queue."""
        async with self._database.write() as connection:
            deadline_at = await self._database.now(connection) + self._limits.total
            await store.change_in_flight(connection, operation.id, {"deadline_at": deadline_at})
        return replace(operation, deadline_at=deadline_at)

    async def _in_flight(self, operation_id: UUID) -> Operation | None:
        async with self._database.read() as connection:
            found = await store.get(connection, operation_id)
        return found if found is not None and found.in_flight else None

    async def _finish(self, operation: Operation, outcome: Outcome, seconds: float | None) -> None:
        """Record the end of an operation and the resulting app state in one transaction."""
        assert operation.app_id is not None
        late = None
        if outcome.observed is not None:
            self._observations.note(operation.app_id, outcome.observed)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            if not await store.change_in_flight(connection, operation.id, outcome.columns(now)):
                return
            app = await app_store.get(connection, operation.app_id)
            assert app is not None
            values = runs.settle(app, operation, outcome, now, self._limits.runs)
            await app_store.change(connection, app.id, values)
            await server_store.recount(connection, app.server_id)
            await self.repeats.record(connection, app, operation, now)
            # If both controller and agent stopped it, it is recorded once.
            if operation.auto_stop and values["status"] == "stopped" and app.run_id is not None:
                await record_auto_stop(connection, app, operation, now)
                late = None if app.stop_at is None else (now - app.stop_at).total_seconds()
        self.repeats.forget(operation.id)
        await self._observations.operation_ended(operation.app_id, ran=outcome.ran)
        self._ended(operation, outcome, seconds, late)

    async def _finish_other(self, operation: Operation, outcome: Outcome, seconds: float) -> None:
        """Record the end of an operation that doesn't concern an app."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await store.change_in_flight(connection, operation.id, outcome.columns(now))
        self._ended(operation, outcome, seconds, None)

    def _ended(self, operation: Operation, outcome: Outcome, seconds: float | None, late: float | None) -> None:
        log.info("operation_ended", kind=operation.kind, state=outcome.state, error=outcome.error)
        self._signals.operation_ended.emit(operation.id)
        self._signals.operation_settled.emit(
            OperationFinished(operation.kind, outcome.state, operation.auto_stop, seconds, late)
        )
        if operation.app_id is not None:
            # The app's deadline may have passed in the meantime.
            self._signals.deadline_moved.emit(operation.app_id)
