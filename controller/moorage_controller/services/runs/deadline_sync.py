"""Agents know how long their apps may run: each is told of every change, until it holds what the database has."""

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
"""How many a host is told of at once."""


class DeadlineSync:
    """Tells agents. One task an app at a time, so that what is told last is what is true."""

    def __init__(
        self, database: Database, hosts: Hosts, timekeeper: ClockJumpGuard, signals: Signals, clock: Clock
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._timekeeper = timekeeper
        self._clock = clock
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._stale: set[UUID] = set()
        # Each app as its agent was told of it last, and the number that the agent said it holds where that is another.
        self._told: dict[UUID, App] = {}
        self._held: dict[UUID, int] = {}
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        signals.deadline_moved.connect(self.schedule_push)

    def schedule_push(self, app_id: UUID) -> None:
        """Have an app's agent told what the database has; again and again where it can't be reached."""
        self._stale.add(app_id)
        if app_id not in self._tasks:
            task = self._tasks[app_id] = asyncio.create_task(
                self._sync_until_current(app_id), name=f"deadline {app_id}"
            )
            task.add_done_callback(lambda _: self._tasks.pop(app_id, None))

    def seen(self, app: App, observation: AppObservation) -> None:
        """Compare what an app's agent holds with what it is to hold; `app` may be a while old."""
        held = observation.deadlines.get(app.id, 0)
        if held != _number(self._told.get(app.id, app)):
            self._held[app.id] = held
            self.schedule_push(app.id)

    async def tell(self, server: Server, app: App, deadline: Deadline) -> None:
        """Tell an app's agent; nothing where the server has none that keeps deadlines. Raises HostUnreachableError."""
        if not server.agent_name:
            return
        try:
            await self._hosts.transport(server).set_deadline(host_app(app), deadline)
        except HostRefusedError as error:
            if error.code not in {"agent_too_old", "no_dead_man"}:
                raise HostUnreachableError(error.sentence, error.code) from None

    async def push_before_commit(self, server: Server, app: App, deadline: Deadline) -> None:
        """Tell an app's agent of a later deadline before it is written down. Raises HostUnreachableError."""
        try:
            await self.tell(server, app, deadline)
        except HostUnreachableError as error:
            sentence = f"The app's agent could not be told, so nothing was changed: {error.sentence}"
            raise HostUnreachableError(sentence, error.code) from None

    async def close(self) -> None:
        """Let go; the next snapshot of each host tells what it doesn't know."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sync_until_current(self, app_id: UUID) -> None:
        structlog.contextvars.clear_contextvars()  # whoever stirred it has nothing to do with it
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
        app, server, now = await self._look(app_id)
        if app is None:
            await self._push_removal(app_id)
        if app is None or server is None or not server.agent_name or not app.deadline_number:
            return
        held = self._held.get(app_id, _number(self._told[app_id]) if app_id in self._told else None)
        if held != _number(app):
            async with self._turns.setdefault(server.id, asyncio.Semaphore(_MAX_CONCURRENT)):
                if (held or 0) > app.deadline_number:
                    await self._bump_version(app_id, held or 0)
                    app, _, now = await self._look(app_id)
                if app is not None:
                    await self.tell(server, app, deadline_of(app, now))
        if app is not None:
            self._told[app_id] = app
        self._held.pop(app_id, None)

    async def _look(self, app_id: UUID) -> tuple[App | None, Server | None, datetime]:
        # What is left of a run is nonsense while its end is by a clock that was set since.
        await self._timekeeper.check()
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            app = await app_store.get(connection, app_id)
            server = None if app is None else await server_store.get(connection, app.server_id)
        return app, server, now

    async def _bump_version(self, app_id: UUID, held: int) -> None:
        """Take a number above the one that the agent holds: of an extension that was lost on its way, or a restore."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            app = await app_store.get(connection, app_id)
            if app is not None:
                await app_store.take_number(connection, app_id, max(runs.next_deadline_number(app, now), held + 1))

    async def _push_removal(self, app_id: UUID) -> None:
        """Take the deadline of an app that is gone from its agent: nobody would ask for it any more."""
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
    """Return the number that an app's agent is to hold; 0: none."""
    return app.deadline_number if app.run_id is not None else 0


def deadline_of(app: App, now: datetime) -> Deadline:
    """Return what an app's agent is to know: no deadline where it has no run."""
    if app.run_id is None or app.stop_at is None:
        return Deadline(app.id, app.deadline_number)
    return Deadline(app.id, app.deadline_number, app.run_id, app.stop_at - now)


def provisional_deadline(app: App, operation: Operation, now: datetime) -> Deadline:
    """Return what an app's agent is to know before it starts the app: should nobody come back to say more."""
    assert operation.run_timeout is not None
    until = operation.deadline_at + timedelta(minutes=operation.run_timeout)
    remaining = max(until, app.stop_at or until) - now
    return Deadline(app.id, app.deadline_number, operation.run_id, remaining)
