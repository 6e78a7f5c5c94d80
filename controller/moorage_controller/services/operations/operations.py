"""Operations: recorded before they are sent, awaited, cancelled, and taken over from a controller that died."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import structlog
from moorage_common.clock import Clock
from moorage_common.docker.states import OperationKind
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import AUTO_STOP, DEAD_MAN, Actor
from moorage_controller.errors import (
    ConflictError,
    DatabaseUnavailableError,
    HostUnreachableError,
    NotFoundError,
    ServerBusyError,
    StopWaitsError,
)
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError, Hosts
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.operations.leases import Leases
from moorage_controller.services.operations.operation_runner import Limits
from moorage_controller.services.operations.operation_tasks import OperationTasks
from moorage_controller.services.operations.queue import Queue
from moorage_controller.services.operations.waiting_stops import repeats_unreachable
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.5
"""Poll interval for operations that another controller drives."""
_HOST_SECONDS = 2.0
"""How long a caller waits for a host that was unavailable to answer again."""
_GRACE = timedelta(seconds=60)
"""How long a caller still waits after an operation's time limit: cancelling it on the host takes time."""


class InFlightError(Exception):
    """Another operation is in flight on the app."""


class Operations:
    """Records operations, and launches the task of each after the commit."""

    def __init__(
        self,
        database: Database,
        hosts: Hosts,
        clock: Clock,
        leases: Leases,
        tasks: OperationTasks,
        *,
        limits: Limits,
        queue: Queue,
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._clock = clock
        self._leases = leases
        self._limits = limits
        self._queue = queue
        self._tasks = tasks
        self.repeats = tasks.repeats

    async def begin(
        self,
        connection: AsyncConnection,
        app: App,
        kind: OperationKind,
        actor: Actor,
        now: datetime,
        *,
        run_minutes: int | None = None,
    ) -> Operation:
        """Record an operation in the caller's transaction; with `run_minutes` it begins a run.

        A stop requested again soon after one failed on an unreachable host waits for the host.

        Raises InFlightError if another operation is in flight on the app; ServerBusyError.
        """
        other = await store.agent_in_flight(connection, app.server_id)
        if other is not None and _is_exclusive(other):
            raise ServerBusyError
        operation = self._new(app, kind, actor, now)
        if run_minutes is not None:
            operation = replace(operation, run_id=uuid4(), run_timeout=run_minutes)
        if kind is OperationKind.DOWN and await repeats_unreachable(connection, app, now):
            operation = replace(operation, request=store.WAITS)
        try:
            await store.add(connection, operation)
        except IntegrityError:
            raise InFlightError from None
        return operation

    async def begin_stops(self, connection: AsyncConnection, due: Sequence[App], now: datetime) -> Sequence[Operation]:
        """Record the stops of due runs in the caller's transaction; skip apps blocked by an operation in flight."""
        shut = {each.server_id for each in await store.agents_in_flight(connection) if _is_exclusive(each)}
        free = [app for app in await app_store.still_due(connection, due) if app.server_id not in shut]
        stops = [self._new(app, OperationKind.DOWN, AUTO_STOP, now) for app in free]
        await store.add_stops(connection, stops)
        await app_store.mark_stopping(connection, [app.id for app in free], now)
        await server_store.recount_all(connection, {app.server_id for app in free})
        return stops

    def _new(self, app: App, kind: OperationKind, actor: Actor, now: datetime) -> Operation:
        return Operation(
            id=uuid4(),
            kind=kind.value,
            app_id=app.id,
            server_id=app.server_id,
            actor_id=actor.user_id,
            actor=actor.name,
            auto_stop=actor in {AUTO_STOP, DEAD_MAN},
            run_id=app.run_id,
            run_timeout=app.run_timeout,
            created_at=now,
            deadline_at=now + self._limits.total,
            driver=self.driver,
        )

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[tuple[AsyncConnection, Callable[[Operation], None]]]:
        """Yield a write transaction and a callback for operations recorded in it, which are launched after the commit.

        If the database connection is lost during the commit, its result is unknown: the operations are launched as
        recovered, and driven if found once the database is back. They would stay in flight until the next start
        otherwise.
        """
        begun: list[Operation] = []
        try:
            async with self._database.write() as connection:
                yield connection, begun.append
        except DatabaseUnavailableError:
            for operation in begun:
                self._tasks.launch(operation, recovered=True)
            raise
        for operation in begun:
            self._tasks.launch(operation)

    async def adopt(self, app_id: UUID, operation_id: UUID) -> None:
        """Record and follow a stop that an app's agent has begun by itself, once.

        If another operation is in flight on the app, nothing happens: the agent reports the stop until it is followed.
        """
        async with self._database.read() as connection:
            if await store.get(connection, operation_id) is not None:
                return
        with suppress(IntegrityError):
            async with self.recording() as (connection, launch):
                now = await self._database.now(connection)
                app = await app_store.get(connection, app_id)
                if app is None:
                    return
                begun = self._new(app, OperationKind.DOWN, DEAD_MAN, now)
                operation = replace(begun, id=operation_id, state="running", started_at=now)
                launch(operation)
                await store.add(connection, operation)
                await app_store.change(connection, app.id, {"status": "stopping", "updated_at": now})
                await server_store.recount(connection, app.server_id)
            log.warning("dead_man_acted", app_id=str(app_id), operation_id=str(operation_id))

    async def recover(self) -> None:
        """Take over every operation in flight whose controller died."""
        # Running operations first: they occupy their slots before a queued one is admitted.
        for operation in sorted(await self._leases.claim(), key=lambda each: each.state == "queued"):
            log.info("operation_taken_up", operation_id=str(operation.id), kind=operation.kind, state=operation.state)
            if self._tasks.of(operation.id) is None:
                self._tasks.launch(operation, recovered=True)

    @property
    def driver(self) -> UUID:
        """The ID of this controller, stored in the operations that it drives."""
        return self._leases.controller_id

    async def get(self, operation_id: UUID) -> Operation:
        """Return an operation. Raises NotFoundError."""
        async with self._database.read() as connection:
            found = await store.get(connection, operation_id)
        if found is None:
            raise NotFoundError("operation_not_found", "There is no operation of that id.")
        return found

    async def search(
        self, app_id: UUID | None, server_id: UUID | None, state: str | None, limit: int = 200, offset: int = 0
    ) -> tuple[Sequence[Operation], int]:
        """Return a page of operations, newest first, and the total count."""
        async with self._database.read() as connection:
            return await store.search(
                connection, app_id=app_id, server_id=server_id, state=state, limit=limit, offset=offset
            )

    async def wait(self, operation_id: UUID, seconds: float | None = None) -> Operation:
        """Return the operation once it has ended, or its current state after that many seconds.

        Without `seconds` the wait lasts until the operation's time limit plus a grace period; an operation still in
        flight then continues.
        """
        operation = await self.get(operation_id)
        until = None if seconds is None else self._clock.monotonic() + seconds
        while operation.in_flight:
            left = await self._seconds_left(operation) if until is None else until - self._clock.monotonic()
            if left <= 0:
                break
            await self._poll_until_finished(operation_id, left)
            operation = await self.get(operation_id)
        return operation

    async def wait_for_stop(self, operation: Operation) -> Operation:
        """Wait for the end of a stop. Raises StopWaitsError if it waits for an unreachable host."""
        if not operation.waits_for_host:
            return await self.wait(operation.id)
        found = await self.wait(operation.id, _HOST_SECONDS)
        if found.in_flight and found.transport is None:
            raise StopWaitsError(str(found.id))
        return await self.wait(operation.id)

    async def _seconds_left(self, operation: Operation) -> float:
        async with self._database.read() as connection:
            now = await self._database.now(connection)
        return (operation.deadline_at + _GRACE - now).total_seconds()

    async def _poll_until_finished(self, operation_id: UUID, most: float) -> None:
        """Wait until the operation may have ended, at most `most` seconds; another controller may drive it."""
        task = self._tasks.of(operation_id)
        if task is None and not (await self.get(operation_id)).in_flight:
            return  # it ended here since the last read
        timer = asyncio.create_task(self._clock.sleep(most if task is not None else min(most, _POLL_SECONDS)))
        try:
            # asyncio.wait never cancels the task: a caller that disconnects does not affect it.
            await asyncio.wait({timer} if task is None else {timer, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    async def cancel(self, operation_id: UUID, actor: Actor) -> Operation:
        """Cancel a start or restart on its host; its end is recorded asynchronously, soon after.

        Raises NotFoundError; ConflictError for a stop and for an operation that has ended; HostUnreachableError.
        """
        operation = await self.get(operation_id)
        if operation.kind == OperationKind.DOWN:
            raise ConflictError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
        if operation.kind in store.AGENT_KINDS:
            raise ConflictError("not_cancellable", "What installs or removes an agent can't be cancelled: wait for it.")
        if not operation.in_flight or operation.server_id is None:
            raise ConflictError("operation_ended", "This operation has ended already.")
        # A queued operation was never sent: no request to the host is needed.
        if self._queue.cancel(operation_id, actor.name):
            await self._record_cancel(operation, actor)
            return await self.wait(operation_id)
        async with self._database.read() as connection:
            server = await server_store.get(connection, operation.server_id)
        assert server is not None
        try:
            transport = self._hosts.transport(server)
            await transport.cancel(operation.id, actor.name)
        except (ContactLostError, HostRefusedError) as error:
            raise HostUnreachableError(f"The host could not be told to cancel: {error}") from None
        await self._record_cancel(operation, actor)
        return await self.get(operation_id)

    async def _record_cancel(self, operation: Operation, actor: Actor) -> None:
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            resource = ("app", operation.app_id, None)
            details = {"operationId": str(operation.id)}
            message = f"The {operation.kind} was cancelled."
            await record(connection, now, actor, Action.CANCEL, resource, message, details)


def _is_exclusive(on_agent: Operation) -> bool:
    """Return whether an agent installation or removal blocks other operations on its server."""
    return bool(json.loads(on_agent.request or "{}").get("exclusive"))
