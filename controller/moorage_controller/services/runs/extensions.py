"""Extensions: users move the end of a run later or earlier."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from moorage_common.clock import to_millis

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, InvalidError, NotFoundError
from moorage_controller.hosts.transport import Deadline
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard
from moorage_controller.services.runs.deadline_sync import DeadlineSync
from moorage_controller.services.runs.transitions import Rules
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as store
from moorage_controller.store.tables import operations as operation_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App, AppView
from moorage_controller.store.tables.servers import Server


@dataclass(frozen=True, slots=True)
class _ExtensionRequest:
    """A run as it was read, and its new end `stop_at`."""

    app: App
    server: Server
    now: datetime
    stop_at: datetime


class Extensions:
    """Moves the end of runs."""

    def __init__(
        self, database: Database, deadlines: DeadlineSync, timekeeper: ClockJumpGuard, signals: Signals, rules: Rules
    ) -> None:
        self._database = database
        self._deadlines = deadlines
        self._timekeeper = timekeeper
        self._signals = signals
        self._rules = rules

    async def extend(
        self, app_id: UUID, actor: Actor, *, minutes: int | None = None, until: datetime | None = None
    ) -> AppView:
        """Move the end of a run by `minutes`, or to the time `until`, which may be earlier than the current end.

        A later end is sent to the agent before the commit, so that the agent never acts on the older one; if that
        fails, nothing changes. Raises NotFoundError; InvalidError if `until` is in the past; ConflictError:
        `not_running`, `run_too_long` (beyond MAX_RUN_MINUTES) and `run_changed` (a concurrent change or auto-stop
        came first); HostUnreachableError.
        """
        await self._timekeeper.check()
        wish = await self._validate(app_id, minutes, until)
        assert wish.app.stop_at is not None
        number = runs.next_deadline_number(wish.app, wish.now)
        later = wish.stop_at > wish.app.stop_at
        try:
            if later:
                told = Deadline(app_id, number, wish.app.run_id, wish.stop_at - wish.now)
                await self._deadlines.push_before_commit(wish.server, wish.app, told)
            view = await self._commit(wish, number, actor)
        except BaseException:
            if later:
                # The agent may have received it.
                await self._revert_on_agent(app_id, number)
            raise
        self._signals.deadline_moved.emit(app_id)
        return view

    async def _validate(self, app_id: UUID, minutes: int | None, until: datetime | None) -> _ExtensionRequest:
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            app = await store.get(connection, app_id)
            server = None if app is None else await server_store.get(connection, app.server_id)
            other = await operation_store.in_flight_on(connection, app_id)
        if app is None or server is None:
            raise NotFoundError("app_not_found", "There is no app of that id.")
        if other is not None and other.kind == "down":
            why = "its time is over" if other.auto_stop else f"{other.actor} asked for it"
            raise ConflictError("not_running", f"{app.name} is being stopped: {why}.")
        if app.status == "starting":
            raise ConflictError("not_running", f"{app.name} is being started: wait until it runs.")
        if app.status != "running" or app.stop_at is None or app.run_began_at is None:
            raise ConflictError("not_running", f"{app.name} isn't running: start it first.")
        if until is None:
            # An overdue run gets the full extension, counted from now.
            until = max(app.stop_at, now) + timedelta(minutes=minutes or 0)
        if until <= now:
            raise InvalidError({"until": "It must be in the future; to end it now, stop the app."})
        if until > app.run_began_at + self._rules.most:
            most = self._rules.most / timedelta(minutes=1)
            raise ConflictError(
                "run_too_long",
                f"A run may last {most:.0f} minutes at most, extensions included (MAX_RUN_MINUTES): this one until "
                f"{app.run_began_at + self._rules.most:%Y-%m-%d %H:%M:%S} UTC. Start it anew for more.",
            )
        return _ExtensionRequest(app, server, now, until)

    async def _commit(self, wish: _ExtensionRequest, number: int, actor: Actor) -> AppView:
        """Move the end if run and end are unchanged and no operation is in flight."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            old = wish.app
            other = await operation_store.in_flight_on(connection, old.id)
            values = self._rules.deadline(old, wish.stop_at, now) | {"deadline_number": number, "updated_at": now}
            changed = other is None and await store.change_run(connection, old.id, old.run_id, old.stop_at, values)
            view = await store.view(connection, old.id)
            if view is None:
                raise NotFoundError("app_not_found", "There is no app of that id any more.")
            if not changed:
                raise ConflictError("run_changed", _conflict_message(view.app, old, other.kind if other else ""))
            assert old.stop_at is not None
            minutes = round((wish.stop_at - old.stop_at) / timedelta(minutes=1))
            message = f"{old.name} runs until {wish.stop_at:%Y-%m-%d %H:%M:%S} UTC now."
            details = {"minutes": minutes, "stopAt": to_millis(wish.stop_at)}
            await record(connection, now, actor, Action.EXTEND, ("app", old.id, old.name), message, details)
        return view

    async def _revert_on_agent(self, app_id: UUID, number: int) -> None:
        """Schedule a push of the stored deadline, with a number above the one that the agent may hold."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            app = await store.get(connection, app_id)
            if app is not None:
                await store.take_number(connection, app_id, max(runs.next_deadline_number(app, now), number + 1))
        self._signals.deadline_moved.emit(app_id)


def _conflict_message(app: App, old: App, kind: str) -> str:
    if kind == "down" or app.status == "stopping":
        return f"{app.name} is being stopped by now: its end could not be moved any more."
    if app.run_id is None:
        return f"{app.name} has stopped meanwhile: its end could not be moved any more."
    if app.run_id != old.run_id or kind:
        return f"{app.name} was started anew meanwhile: look when it ends now."
    assert app.stop_at is not None
    return f"Somebody else moved the end meanwhile, to {app.stop_at:%Y-%m-%d %H:%M:%S} UTC: look, and try again."
