"""Observations: apply the observed state of hosts and apps to the database, the source of every status."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import OBSERVER
from moorage_controller.hosts.transport import AppObservation, HostInfo
from moorage_controller.services.agents.renewal import expired_sentence
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.fleet.directories import problem_of
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.transitions import EndedRun, Rules
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App, AppView
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    server_id: UUID
    observation: AppObservation
    shares: App | None


class Observations:
    """Applies observations in the order in which they were made, not the order of arrival."""

    def __init__(self, database: Database, signals: Signals, rules: Rules) -> None:
        self._database = database
        self._signals = signals
        self._rules = rules
        self._last_look: dict[UUID, tuple[str, int]] = {}
        # Observed while an operation was in flight: the status was not applied, and the host would not send it again.
        self._held: dict[UUID, _Seen] = {}
        self._ended: dict[UUID, EndedRun] = {}

    def note(self, app_id: UUID, observation: AppObservation) -> None:
        """Remember the time of an app's last observation; call it before the observation is committed."""
        if not self._is_stale(app_id, observation):
            self._last_look[app_id] = (observation.boot_id, observation.looked_at)

    async def app_seen(
        self, app_id: UUID, server_id: UUID, observation: AppObservation, shares: App | None = None
    ) -> None:
        """Apply an observation of an app on a server; `shares` is the oldest other app in its directory.

        An observation is skipped if it is older than the last one, from a former place of the app, or without change.
        """
        self.note(app_id, observation)
        if self._is_stale(app_id, observation):
            return
        seen = _Seen(server_id, observation, shares)
        # Before the read of the database: an operation that ends right after the read finds it here.
        self._held[app_id] = seen
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            view = await app_store.view(connection, app_id)
        if view is None or view.operation_id is None:
            self._held.pop(app_id, None)
        if view is None or not self._changes(view, seen, now):
            return
        async with self._database.write() as connection:
            # An operation may have ended in the meantime, with a later observation than this one.
            if self._is_stale(app_id, observation):
                return
            await self._apply(connection, app_id, seen)
        self._signals.deadline_moved.emit(app_id)

    async def operation_ended(self, app_id: UUID, *, ran: bool) -> None:
        """Apply the observation held back during an operation if the operation never ran."""
        self._ended.pop(app_id, None)
        held = self._held.pop(app_id, None)
        if held is not None and not ran:
            await self.app_seen(app_id, held.server_id, held.observation, held.shares)

    async def host_seen(self, server_id: UUID, info: HostInfo) -> None:
        """Apply a host's facts. A host whose Engine doesn't answer is offline, with the reason as status detail.

        A host whose disk is full, or nearly, is online, with that as status detail.
        """
        values: dict[str, object] = {
            "status": "online" if info.engine_reachable else "offline",
            "status_detail": (info.disk_problem if info.engine_reachable else info.engine_problem) or None,
            "running_containers": info.running_containers,
            "uptime": info.uptime,
            "fallback": info.fallback or None,
        }
        if info.agent_version:
            values |= {"agent_version": info.agent_version, "agent_journal": info.journal or None}
            values["keeps_deadlines"] = info.keeps_deadlines
        if not info.engine_reachable:
            self._signals.engine_lost.emit(server_id)
        await self._change_server(server_id, values)

    async def host_lost(self, server_id: UUID, sentence: str) -> None:
        """Mark a host as offline. Its apps keep their status; their health becomes unknown."""
        await self._change_server(server_id, {"status": "offline", "status_detail": sentence, "fallback": None})

    async def _change_server(self, server_id: UUID, values: Mapping[str, object]) -> None:
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            old = await server_store.get(connection, server_id)
            if old is None:
                return
            values = await _explained(connection, old, values, now)
            news = {name for name, value in values.items() if getattr(old, name) != value} - {"uptime"}
            await server_store.change(connection, server_id, {**values, "last_checked": now}, quietly=not news)
            turned = old.status != values["status"]
            if turned:
                detail = values["status_detail"] or "It answers."
                message = f"Server {old.name} is {values['status']}. {detail}"
                resource = ("server", server_id, old.name)
                await record(
                    connection, now, OBSERVER, Action.STATUS_CHANGE, resource, message, {"status": values["status"]}
                )
            if turned and values["status"] == "offline":
                for app in await app_store.on_server(connection, server_id):
                    await app_store.change(connection, app.id, runs.NOT_JUDGED)
        if turned:
            log.info("server_status_changed", server_id=str(server_id), **values)
        if turned and values["status"] == "online":
            self._signals.host_back.emit(server_id)

    def _changes(self, view: AppView, seen: _Seen, now: datetime, ended: EndedRun | None = None) -> runs.Values:
        """Return the columns that an observation changes; empty if the app is no longer in that place."""
        app, observation, in_flight = view.app, seen.observation, view.operation_id is not None
        if (app.server_id, app.cd_path) != (seen.server_id, observation.cd_path):
            return {}
        if seen.shares is not None and seen.shares.age < app.age:
            # The containers count for the older app only: with two runs, each would stop the other.
            observation = replace(observation, containers=())
        problem = problem_of(app, observation, seen.shares)
        return runs.observe(app, observation, now, self._rules, in_flight=in_flight, ended=ended, problem=problem)

    async def _apply(self, connection: AsyncConnection, app_id: UUID, seen: _Seen) -> None:
        now = await self._database.now(connection)
        view = await app_store.view(connection, app_id)
        if view is None:
            return
        if view.operation_id is not None:
            self._held[app_id] = seen
        values = self._changes(view, seen, now, self._ended.get(app_id))
        if not values:
            return
        await app_store.change(connection, app_id, values)
        if "status" in values:
            self._ended.pop(app_id, None)
            if values["status"] == "stopped":
                self._ended[app_id] = EndedRun.of(view.app, seen.observation)
            await server_store.recount(connection, view.app.server_id)
            await self._record_status_change(connection, view.app, values, seen.observation)

    async def _record_status_change(
        self, connection: AsyncConnection, app: App, values: runs.Values, observation: AppObservation
    ) -> None:
        now = await self._database.now(connection)
        if values["status"] == "running":
            reason = "its containers were found running without a start from here"
        else:
            reason = runs.why_stopped(observation.containers)
        message = f"App {app.name} is {values['status']}: {reason}."
        details = {"from": app.status, "to": values["status"], "reason": reason}
        await record(connection, now, OBSERVER, Action.STATUS_CHANGE, ("app", app.id, app.name), message, details)
        log.info("app_status_changed", app_id=str(app.id), **details)

    def _is_stale(self, app_id: UUID, observation: AppObservation) -> bool:
        boot_id, looked_at = self._last_look.get(app_id, ("", 0))
        return boot_id == observation.boot_id and observation.looked_at < looked_at


async def _explained(
    connection: AsyncConnection, server: Server, values: Mapping[str, object], now: datetime
) -> Mapping[str, object]:
    """Replace the connection error by its reason and remedy if the agent's certificate has expired."""
    unreached = "fallback" if values["fallback"] else "status_detail" if values["status"] == "offline" else None
    if unreached is None or values.get("agent_version"):
        return values
    sentence = await expired_sentence(connection, server, now)
    return {**values, unreached: sentence} if sentence else values
