"""Host watcher: watch every host, by its agent or SSH, and keep the state of servers and apps current."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from uuid import UUID

import structlog
from moorage_common.clock import Clock, jittered

from moorage_controller.errors import DatabaseUnavailableError, HostUnreachableError
from moorage_controller.hosts.transport import (
    SAID_TOO_MUCH,
    AppObservation,
    ContactLostError,
    HostInfo,
    HostRefusedError,
    Hosts,
    Snapshot,
    WatchItem,
)
from moorage_controller.services.fleet.directories import Shared
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.runs.deadline_sync import DeadlineSync
from moorage_controller.services.runs.transitions import host_app
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.write_priority import Priority, priority
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App

log = structlog.get_logger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
_LEFT_ALONE_SECONDS = 60.0
"""Pause in seconds before watching a host again that exceeded a message limit."""
_EVERYTHING_SECONDS = 600.0
"""Interval in seconds of restarting each watch: a watch begins with a full snapshot, which corrects any error."""


class HostWatcher:
    """Runs one watch per server; restarts the watch of a server that changed."""

    def __init__(
        self,
        database: Database,
        hosts: Hosts,
        observations: Observations,
        operations: Operations,
        deadlines: DeadlineSync,
        signals: Signals,
        clock: Clock,
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._observations = observations
        self._operations = operations
        self._deadlines = deadlines
        self._signals = signals
        self._clock = clock
        self._changed: asyncio.Queue[UUID] = asyncio.Queue()
        self._watches: dict[UUID, asyncio.Task[None]] = {}
        signals.server_changed.connect(self._changed.put_nowait)

    async def run(self) -> None:
        """Watch all servers until cancelled."""
        slowly = asyncio.create_task(self._check_slowly(), name="slow check")
        try:
            async with self._database.read() as connection:
                servers = await server_store.all_servers(connection)
            for server in servers:
                await self._watch_anew(server.id)
            while True:
                await self._watch_anew(await self._changed.get())
        finally:
            watches, self._watches = [slowly, *self._watches.values()], {}
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _watch_anew(self, server_id: UUID) -> None:
        old = self._watches.pop(server_id, None)
        if old is not None:
            old.cancel()
            await asyncio.gather(old, return_exceptions=True)
        self._watches[server_id] = asyncio.create_task(self._watch(server_id), name=f"watch {server_id}")

    async def _check_slowly(self) -> None:
        while True:
            await self._clock.sleep(_EVERYTHING_SECONDS)
            for server_id in self._watches:
                self._changed.put_nowait(server_id)

    async def _watch(self, server_id: UUID) -> None:
        priority.set(Priority.BACKGROUND)
        retry, waited = _FIRST_RETRY, True
        while True:
            started, heard = self._clock.monotonic(), False
            try:
                try:
                    if not await self._watch_once(server_id):
                        return
                    heard = True
                except (ContactLostError, HostRefusedError, HostUnreachableError) as error:
                    await self._observations.host_lost(server_id, str(error))
                    if error.code == SAID_TOO_MUCH:
                        log.warning(SAID_TOO_MUCH, server_id=str(server_id), error=str(error))
                        await self._clock.sleep(jittered(_LEFT_ALONE_SECONDS))
            except DatabaseUnavailableError:
                pass  # logged by the database layer
            except Exception:
                log.exception("host_watch_failed", server_id=str(server_id))
                await self._lost_sense(server_id)
            if self._clock.monotonic() - started > _LAST_RETRY:
                retry, waited = _FIRST_RETRY, True
            if heard and waited:
                waited = False
                continue
            await self._clock.sleep(jittered(retry))
            retry, waited = min(retry * 2, _LAST_RETRY), True

    async def _lost_sense(self, server_id: UUID) -> None:
        """Mark a host as offline after an unexpected error, so that its last state doesn't stay."""
        with suppress(Exception):  # the watch continues after any failure
            await self._observations.host_lost(
                server_id, "The host answers, and what it says makes no sense: see the controller's log."
            )

    async def _watch_once(self, server_id: UUID) -> bool:
        """Watch until the connection breaks; return False if the server is deleted or has neither agent nor SSH access.

        Raises ContactLostError, HostRefusedError or HostUnreachableError if nothing was received, or if a message limit
        was exceeded. A broken watch alone doesn't prove that the host is offline.
        """
        async with self._database.read() as connection:
            server = await server_store.get(connection, server_id)
            apps = await app_store.on_server(connection, server_id)
        if server is None or not (server.agent_name or server.encrypted_credentials):
            return False
        transport, heard, shared = self._hosts.transport(server), False, Shared(apps)
        try:
            async for item in transport.watch([host_app(app) for app in apps]):
                heard = True
                await self._apply(server_id, apps, shared, item)
        except (ContactLostError, HostRefusedError, HostUnreachableError) as error:
            if not heard or error.code == SAID_TOO_MUCH:
                raise
        return True

    async def _apply(self, server_id: UUID, apps: Sequence[App], shared: Shared, item: WatchItem) -> None:
        """Apply one item. A failure affects only that item; an unavailable database ends the watch."""
        match item:
            case Snapshot(host, observations):
                # All first: whether an app shares its directory depends on the others.
                for observation in observations:
                    _note(apps, shared, observation)
                for observation in observations:
                    await self._alone(server_id, self._app_seen(apps, shared, observation))
                await self._alone(server_id, self._observations.host_seen(server_id, host))
                self._signals.host_seen.emit(server_id)
            case HostInfo():
                await self._alone(server_id, self._observations.host_seen(server_id, item))
            case AppObservation():
                _note(apps, shared, item)
                await self._alone(server_id, self._app_seen(apps, shared, item))

    @staticmethod
    async def _alone(server_id: UUID, applying: Awaitable[object]) -> None:
        try:
            await applying
        except DatabaseUnavailableError:
            # The next watch begins with a snapshot, which includes this item.
            raise
        except Exception:
            log.exception("observation_failed", server_id=str(server_id))

    async def _app_seen(self, apps: Sequence[App], shared: Shared, observation: AppObservation) -> None:
        for app in _apps_of(apps, observation):
            # Before the status, which is set when the operation ends.
            if app.id in observation.stops:
                await self._operations.adopt(app.id, observation.stops[app.id])
            await self._observations.app_seen(app.id, app.server_id, observation, shared.first(app))
            self._deadlines.seen(app, observation)


def _note(apps: Sequence[App], shared: Shared, observation: AppObservation) -> None:
    for app in _apps_of(apps, observation):
        shared.note(app, observation)


def _apps_of(apps: Sequence[App], observation: AppObservation) -> Sequence[App]:
    return [app for app in apps if app.cd_path == observation.cd_path]
