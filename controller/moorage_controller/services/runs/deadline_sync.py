"""Deadline sync: send each deadline change to the app's agent until the agent holds the stored deadline."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from moorage_common.clock import Clock, jittered

from moorage_controller.errors import DatabaseUnavailableError, HostUnreachableError
from moorage_controller.hosts.transport import AppObservation, Deadline, HostRefusedError, Hosts
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard
from moorage_controller.services.runs.transitions import host_app
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.write_priority import Priority, priority
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)

_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
_MAX_CONCURRENT = 8
"""Concurrent pushes per host."""


class DeadlineSync:
    """Pushes deadlines to agents. One task per app at a time, so that the last push carries the current state."""

    def __init__(
        self, database: Database, hosts: Hosts, timekeeper: ClockJumpGuard, signals: Signals, clock: Clock
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._timekeeper = timekeeper
        self._clock = clock
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._stale: set[UUID] = set()
        # Each app as last sent to its agent, and the number that the agent reported if it differs.
        self._told: dict[UUID, App] = {}
        self._held: dict[UUID, int] = {}
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        signals.deadline_moved.connect(self.schedule_push)

    def schedule_push(self, app_id: UUID) -> None:
        """Schedule a push of the stored deadline to an app's agent; retried until the agent can be reached."""
        self._stale.add(app_id)
        if app_id not in self._tasks:
            task = self._tasks[app_id] = asyncio.create_task(
                self._sync_until_current(app_id), name=f"deadline {app_id}"
            )
            task.add_done_callback(lambda _: self._tasks.pop(app_id, None))

    def seen(self, app: App, observation: AppObservation) -> None:
        """Compare the deadline number an agent reports with the expected one; `app` may be outdated."""
        held = observation.deadlines.get(app.id, 0)
        if held != _number(self._told.get(app.id, app)):
            self._held[app.id] = held
            self.schedule_push(app.id)

    async def tell(self, server: Server, app: App, deadline: Deadline) -> None:
        """Send a deadline to an app's agent, if there is one that keeps deadlines. Raises HostUnreachableError."""
        if not server.agent_name:
            return
        try:
            await self._hosts.transport(server).set_deadline(host_app(app), deadline)
        except HostRefusedError as error:
            if error.code not in {"agent_too_old", "no_dead_man"}:
                raise HostUnreachableError(error.sentence, error.code) from None

    async def push_before_commit(self, server: Server, app: App, deadline: Deadline) -> None:
        """Send a later deadline to an app's agent before it is committed. Raises HostUnreachableError."""
        try:
            await self.tell(server, app, deadline)
        except HostUnreachableError as error:
            sentence = f"The app's agent could not be told, so nothing was changed: {error.sentence}"
            raise HostUnreachableError(sentence, error.code) from None

    async def close(self) -> None:
        """Cancel all pushes; the next snapshot of each host shows outdated deadlines, which are then sent again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sync_until_current(self, app_id: UUID) -> None:
        structlog.contextvars.clear_contextvars()  # the context of the caller does not apply to this task
        priority.set(Priority.BACKGROUND)
        retry = _FIRST_RETRY
        while app_id in self._stale:
            self._stale.discard(app_id)
            try:
                await self._sync_once(app_id)
            except (HostUnreachableError, DatabaseUnavailableError) as error:
                log.debug("deadline_not_told", app_id=str(app_id), error=error.sentence)
                self._stale.add(app_id)
                await self._clock.sleep(jittered(retry))
                retry = min(retry * 2, _LAST_RETRY)

    async def _sync_once(self, app_id: UUID) -> None:
        app, server, now = await self._read(app_id)
        if app is None:
            await self._push_removal(app_id)
        if app is None or server is None or not server.agent_name or not app.deadline_number:
            return
        held = self._held.get(app_id, _number(self._told[app_id]) if app_id in self._told else None)
        if held != _number(app):
            async with self._turns.setdefault(server.id, asyncio.Semaphore(_MAX_CONCURRENT)):
                if (held or 0) > app.deadline_number:
                    await self._bump_version(app_id, held or 0)
                    app, _, now = await self._read(app_id)
                if app is not None:
                    await self.tell(server, app, deadline_of(app, now))
        if app is not None:
            self._told[app_id] = app
        self._held.pop(app_id, None)

    async def _read(self, app_id: UUID) -> tuple[App | None, Server | None, datetime]:
        # After a clock jump the remaining time is wrong until the deadlines are shifted.
        await self._timekeeper.check()
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            app = await app_store.get(connection, app_id)
            server = None if app is None else await server_store.get(connection, app.server_id)
        return app, server, now

    async def _bump_version(self, app_id: UUID, held: int) -> None:
        """Store a number above the one the agent holds, which is higher after a lost extension or a restore."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            app = await app_store.get(connection, app_id)
            if app is not None:
                await app_store.take_number(connection, app_id, max(runs.next_deadline_number(app, now), held + 1))

    async def _push_removal(self, app_id: UUID) -> None:
        """Remove the deadline of a deleted app from its agent; no later sync would do it."""
        self._held.pop(app_id, None)
        told = self._told.get(app_id)
        if told is not None and _number(told):
            async with self._database.read() as connection:
                now = await self._database.now(connection)
                server = await server_store.get(connection, told.server_id)
            if server is not None:
                await self.tell(server, told, Deadline(app_id, runs.next_deadline_number(told, now)))
        self._told.pop(app_id, None)


def _number(app: App) -> int:
    """Return the deadline number that an app's agent should hold; 0 means none."""
    return app.deadline_number if app.run_id is not None else 0


def deadline_of(app: App, now: datetime) -> Deadline:
    """Return the deadline for an app's agent; without an end if the app has no run."""
    if app.run_id is None or app.stop_at is None:
        return Deadline(app.id, app.deadline_number)
    return Deadline(app.id, app.deadline_number, app.run_id, app.stop_at - now)


def provisional_deadline(app: App, operation: Operation, now: datetime) -> Deadline:
    """Return the deadline sent before a start; it applies if the agent never receives a later one."""
    assert operation.run_timeout is not None
    until = operation.deadline_at + timedelta(minutes=operation.run_timeout)
    remaining = max(until, app.stop_at or until) - now
    return Deadline(app.id, app.deadline_number, operation.run_id, remaining)
