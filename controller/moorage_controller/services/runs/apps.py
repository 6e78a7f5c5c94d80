"""App lifecycle: create, update, delete, start and stop apps."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from moorage_common.clock import to_millis
from moorage_common.docker.states import OperationKind
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    OperationInProgressError,
)
from moorage_controller.hosts.transport import HostApp
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.fleet.directories import Directories, Moved, check_directory, check_new_place, is_moved
from moorage_controller.services.idempotency import NO_KEY, IdempotentRequest
from moorage_controller.services.operations.operations import InFlightError, Operations
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.deadline_sync import DeadlineSync, deadline_of
from moorage_controller.services.runs.transitions import Rules, host_app
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as store
from moorage_controller.store.tables import operations as operation_store
from moorage_controller.store.tables import projects as project_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App, AppView
from moorage_controller.store.tables.operations import Operation

_ACTIONS = {
    OperationKind.UP: Action.START,
    OperationKind.RESTART: Action.RESTART,
    OperationKind.DOWN: Action.STOP,
}
_TIMEOUTS = {"auto_stop_timeout": "autoStopTimeout", "default_timeout": "defaultTimeout"}
_NEVER_SEEN: runs.Values = {"project_name": None, "project_directory": None}
"""Reset on a move: the Compose project read from the old directory does not apply to the new one."""


class _MovedError(Exception):
    """The run changed after its deadline was sent to the agent."""


class Apps:
    """Creates, changes, deletes, starts and stops apps."""

    def __init__(
        self,
        database: Database,
        operations: Operations,
        deadlines: DeadlineSync,
        directories: Directories,
        signals: Signals,
        rules: Rules,
    ) -> None:
        self._database = database
        self._directories = directories
        self._deadlines = deadlines
        self._operations = operations
        self._signals = signals
        self._rules = rules

    async def all(self) -> Sequence[AppView]:
        """Return all apps by name."""
        async with self._database.read() as connection:
            return await store.all_views(connection)

    async def get(self, app_id: UUID) -> AppView:
        """Return an app. Raises NotFoundError."""
        async with self._database.read() as connection:
            return _found(await store.view(connection, app_id))

    async def create(
        self, fields: Mapping[str, Any], actor: Actor, once: IdempotentRequest[AppView] = NO_KEY
    ) -> AppView:
        """Create an app. Raises InvalidError if its project or server doesn't exist, or its timeout is too long.

        Raises ConflictError if another app uses its directory (`directory_taken`) or is the same Compose project
        (`project_taken`).
        """
        fields = dict(fields)
        default = fields.pop("default_timeout", None)
        if default is not None:
            self._check_minutes("defaultTimeout", default)
            fields["auto_stop_timeout"] = default
        self._check_minutes("autoStopTimeout", fields["auto_stop_timeout"])
        place = HostApp(fields["cd_path"], compose_files=fields["compose_files"])
        seen = await self._directories.read(fields["server_id"], place)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await once.begin(connection, now)
            await _check_references(connection, fields)
            app = App(
                id=uuid4(),
                status="stopped",
                health="unknown",
                started_at=None,
                observed_at=None,
                last_error=None,
                health_detail=None,
                last_result=None,
                project_name=seen.get("project_name"),
                project_directory=seen.get("project_directory"),
                run_id=None,
                run_timeout=None,
                stop_at=None,
                run_began_at=None,
                deadline_number=0,
                warn_at=None,
                overdue=False,
                created_at=now,
                updated_at=now,
                **fields,
            )
            await check_new_place(connection, app)
            await store.add(connection, app)
            resource = ("app", app.id, app.name)
            await record(connection, now, actor, Action.CREATE, resource, f"App {app.name} was made.")
            view = AppView(app, None)
            await once.keep(connection, now, view)
        self._signals.server_changed.emit(app.server_id)
        return view

    async def update(
        self, app_id: UUID, changes: Mapping[str, Any], actor: Actor, *, timeout_only: bool = False
    ) -> AppView:
        """Change fields; see `runs.NewTimeout` for the effect of `auto_stop_timeout` and `default_timeout` on a run.

        Raises NotFoundError, InvalidError; ConflictError if the server or directory changes while the app runs, or if
        another app uses the new one; ForbiddenError for any other change if the caller may change only the timeout;
        HostUnreachableError if a later deadline can't be sent to the agent, which would stop the app at the old one.
        """
        # Who may change only the timeout is refused a move, without asking the hosts about it.
        moved = None if timeout_only else await self._directories.read_new(app_id, changes)
        while True:
            told = await self._tell_of_later_end(app_id, changes)
            with suppress(_MovedError):
                return await self._update(app_id, changes, actor, told, moved, timeout_only=timeout_only)

    async def _update(
        self,
        app_id: UUID,
        changes: Mapping[str, Any],
        actor: Actor,
        told: tuple[UUID | None, datetime | None],
        moved: Moved | None,
        *,
        timeout_only: bool,
    ) -> AppView:
        """Change fields if run and end still match `told`, as sent to the agent. Raises _MovedError if not."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            view = _found(await store.view(connection, app_id))
            old = view.app
            timeouts = {field: changes[key] for key, field in _TIMEOUTS.items() if key in changes}
            others = {key: value for key, value in changes.items() if key not in _TIMEOUTS}
            if timeouts and (old.run_id, old.stop_at) != told:
                raise _MovedError
            await _check_references(connection, changes)
            if timeout_only and any(getattr(old, key) != value for key, value in others.items()):
                raise ForbiddenError("admin_only", "Only an admin may change more of an app than autoStopTimeout.")
            values: runs.Values = {**others, "updated_at": now, **await _place(connection, view, others, moved)}
            timeout = _new_timeout(old, changes)
            if (timeout.default, timeout.shift) != (old.auto_stop_timeout, 0):
                for field, minutes in timeouts.items():
                    if minutes != old.auto_stop_timeout:  # it may be older than the limit
                        self._check_minutes(field, minutes)
                values |= {"auto_stop_timeout": timeout.default, **self._moved(old, timeout.shift, now)}
            await store.change(connection, app_id, values)
            new = _found(await store.view(connection, app_id))
            message, details = _what_changed(old, new.app, changes, now)
            await record(connection, now, actor, Action.UPDATE, ("app", app_id, new.app.name), message, details)
        if (old.server_id, host_app(old)) != (new.app.server_id, host_app(new.app)):
            for server_id in {old.server_id, new.app.server_id}:
                self._signals.server_changed.emit(server_id)
        self._signals.deadline_moved.emit(app_id)
        return new

    async def delete(self, app_id: UUID, actor: Actor, *, force: bool) -> None:
        """Delete an app; `force` stops it first. Raises NotFoundError; ConflictError if it runs without `force`."""
        view = await self.get(app_id)
        if force and (view.app.status != "stopped" or view.app.run_id is not None):
            operation = await self._operations.wait_for_stop(await self.stop(app_id, actor))
            if operation.state != "succeeded":
                raise ConflictError("app_running", f"{view.app.name} could not be stopped: {operation.error}")
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            app = _found(await store.view(connection, app_id)).app
            if app.status != "stopped" or app.run_id is not None:
                raise ConflictError("app_running", f"{app.name} runs: stop it first, or delete with force=true.")
            await store.remove(connection, app_id)
            resource = ("app", app_id, app.name)
            await record(connection, now, actor, Action.DELETE, resource, f"App {app.name} was removed.")
        self._signals.deadline_moved.emit(app_id)
        self._signals.server_changed.emit(app.server_id)

    async def start(
        self, app_id: UUID, actor: Actor, minutes: int | None, kind: OperationKind = OperationKind.UP
    ) -> Operation:
        """Begin a start or restart, or join the one in flight; `minutes` applies to this run only.

        Raises NotFoundError; InvalidError if `minutes` exceeds the maximum run length; ConflictError
        (`operation_in_progress`) if an operation of another kind is in flight, or (`directory_taken`) if another app
        uses its directory.
        """
        if minutes is not None:
            self._check_minutes("timeout", minutes)
        return await self._begin(app_id, kind, actor, minutes)

    async def stop(self, app_id: UUID, actor: Actor, *, cancel_start: bool = False) -> Operation:
        """Begin a stop, or join the one in flight; `cancel_start` cancels a start or restart first.

        Raises the errors of `start`, and HostUnreachableError if the start can't be cancelled.
        """
        while True:
            try:
                return await self._begin(app_id, OperationKind.DOWN, actor, None)
            except OperationInProgressError as error:
                if not cancel_start:
                    raise
                await self._end_start(UUID(error.operation_id), actor)

    async def _end_start(self, operation_id: UUID, actor: Actor) -> None:
        with suppress(ConflictError):  # it has ended in the meantime
            await self._operations.cancel(operation_id, actor)
        operation = await self._operations.wait(operation_id)
        if operation.in_flight:
            raise OperationInProgressError(
                "The start was cancelled, and its host hasn't told its end yet: stop the app again in a moment.",
                str(operation_id),
            )

    async def _begin(self, app_id: UUID, kind: OperationKind, actor: Actor, minutes: int | None) -> Operation:
        while True:
            try:
                return await self._record(app_id, kind, actor, minutes)
            except InFlightError:
                async with self._database.read() as connection:
                    other = await operation_store.in_flight_on(connection, app_id)
                if other is None:
                    continue  # it ended in between: try again
                if other.kind == kind:
                    if other.waits_for_host:
                        self._operations.repeats.count(other, actor)
                    return other
                raise OperationInProgressError(_in_progress(other), str(other.id)) from None

    async def _record(self, app_id: UUID, kind: OperationKind, actor: Actor, minutes: int | None) -> Operation:
        """Store operation, provisional run, status and audit entry together, before anything is sent."""
        async with self._operations.recording() as (connection, launch):
            now = await self._database.now(connection)
            app = _found(await store.view(connection, app_id)).app
            starts = kind is not OperationKind.DOWN
            if starts:
                await check_directory(connection, app)
            run_minutes = (minutes or runs.default_minutes(app, kind, now)) if starts else None
            operation = await self._operations.begin(connection, app, kind, actor, now, run_minutes=run_minutes)
            launch(operation)
            values = runs.begin_start(app, operation, now) if starts else {"status": "stopping"}
            await store.change(connection, app_id, {**values, "updated_at": now})
            await server_store.recount(connection, app.server_id)
            details = {"operationId": str(operation.id)} | ({"timeout": run_minutes} if starts else {})
            resource = ("app", app_id, app.name)
            message = f"{actor.name} asked for a {_ACTIONS[kind].lower()} of {app.name}."
            await record(connection, now, actor, _ACTIONS[kind], resource, message, details)
        return operation

    async def _tell_of_later_end(self, app_id: UUID, changes: Mapping[str, Any]) -> tuple[UUID | None, datetime | None]:
        """Send the agent the new deadline if a timeout change makes it later; return the current run ID and its end."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            app = _found(await store.view(connection, app_id)).app
            server = await server_store.get(connection, app.server_id)
        shift = _new_timeout(app, changes).shift
        if shift > 0 and server is not None and app.stop_at is not None:
            moved = replace(app, **self._moved(app, shift, now))
            if moved.stop_at is not None and moved.stop_at > app.stop_at:
                await self._deadlines.push_before_commit(server, app, deadline_of(moved, now))
        return app.run_id, app.stop_at

    def _check_minutes(self, field: str, minutes: int) -> None:
        if timedelta(minutes=minutes) > self._rules.most:
            most = self._rules.most / timedelta(minutes=1)
            raise InvalidError({field: f"A run may last {most:.0f} minutes at most (MAX_RUN_MINUTES)."})

    def _moved(self, app: App, shift: int, now: datetime) -> runs.Values:
        """Return the columns of a run moved by `shift` minutes, up to its maximum length; empty without a known run."""
        known = app.started_at is not None and app.run_timeout is not None and app.run_began_at is not None
        if not shift or not known or app.stop_at is None or app.run_timeout is None or app.run_began_at is None:
            return {}
        stop_at = min(app.stop_at + timedelta(minutes=shift), app.run_began_at + self._rules.most)
        return {"run_timeout": max(app.run_timeout + shift, 1), **self._rules.deadline(app, stop_at, now)}


async def _place(
    connection: AsyncConnection, view: AppView, changes: Mapping[str, Any], moved: Moved | None
) -> runs.Values:
    """Return further columns to change with a move to another server or directory; `moved` is the hosts' answer.

    Raises ConflictError if another app is there, or if the app runs. A running app may change only its directory, and
    only if the old one is gone: then the project columns stay, so that its containers are found until they are stopped.
    """
    app = view.app
    if not is_moved(app, changes):
        return {}
    values: runs.Values = {**_NEVER_SEEN, **(moved.seen if moved else {})}
    if app.status != "stopped":
        elsewhere = changes.get("server_id", app.server_id) != app.server_id
        gone = moved is not None and moved.gone == app.cd_path and view.operation_id is None
        if elsewhere or not gone:
            name = "serverId" if elsewhere else "cdPath"
            raise ConflictError("app_running", f"{name} can't change while {app.name} runs: stop it first.")
        values = {}
    await check_new_place(connection, replace(app, **{**changes, **values}))
    return values


def _new_timeout(app: App, changes: Mapping[str, Any]) -> runs.NewTimeout:
    return runs.NewTimeout.of(app, changes.get("auto_stop_timeout"), changes.get("default_timeout"))


def _what_changed(old: App, new: App, changes: Mapping[str, Any], now: datetime) -> tuple[str, dict[str, object]]:
    """Describe a change for the audit log: a sentence and its details."""
    details: dict[str, object] = {"changed": sorted(changes)}
    message = f"App {old.name} was changed."
    if new.stop_at is not None and new.stop_at != old.stop_at:
        details["stopAt"] = to_millis(new.stop_at)
        over = new.stop_at <= now
        message += " Its run's time is over with that: it is stopped now." if over else ""
    return message, details


def _in_progress(other: Operation) -> str:
    action = _ACTIONS[OperationKind(other.kind)].lower()
    if other.kind == OperationKind.DOWN:
        return f"A {action} of this app is in progress (operation {other.id}): wait for its end."
    return (
        f"A {action} of this app is in progress (operation {other.id}): wait for its end, cancel that operation, "
        "or stop the app with cancelStart."
    )


def _found(view: AppView | None) -> AppView:
    if view is None:
        raise NotFoundError("app_not_found", "There is no app of that id.")
    return view


async def _check_references(connection: AsyncConnection, fields: Mapping[str, Any]) -> None:
    wrong: dict[str, str] = {}
    if "project_id" in fields and await project_store.get(connection, fields["project_id"]) is None:
        wrong["projectId"] = "There is no project of that id."
    if "server_id" in fields and await server_store.get(connection, fields["server_id"]) is None:
        wrong["serverId"] = "There is no server of that id."
    if wrong:
        raise InvalidError(wrong)
