"""Host checks: query the state of hosts, with one shared check per host and a limit of a few seconds."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import structlog
from moorage_common.clock import Clock, within

from moorage_controller.errors import HostUnreachableError, NotFoundError
from moorage_controller.hosts.transport import HostInfo, Hosts
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import servers as store
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOGIN_SECONDS = 1.0
CHECK_SECONDS = 5.0 + LOGIN_SECONDS
"""Slightly more than a transport's own timeout, whose error gives a reason; a login shell takes longest."""
FIRST_SECONDS = 2.0
"""How long the response to a change of a server waits for its check."""
ROUND_SECONDS = 8.0
AT_ONCE = 64


class Checks:
    """Runs checks in tasks of their own. They continue without the caller: others may wait, and results are stored."""

    def __init__(
        self,
        database: Database,
        hosts: Hosts,
        observations: Observations,
        signals: Signals,
        clock: Clock,
        *,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._database = database
        self._hosts = hosts
        self._observations = observations
        self._signals = signals
        self._clock = clock
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._checks: dict[UUID, asyncio.Task[Server]] = {}
        self._round: asyncio.Task[Sequence[Server]] | None = None

    async def check(self, server_id: UUID) -> Server:
        """Check a host, or join the check in progress, and return the stored result. Raises NotFoundError only."""
        return await asyncio.shield(self.begin(server_id))

    async def check_soon(self, server: Server) -> Server:
        """Check a host and return its server; `checking` if that takes longer than FIRST_SECONDS."""
        task = self.begin(server.id)
        try:
            return await within(FIRST_SECONDS, _shielded(task), self._clock)
        except TimeoutError:
            return replace(server, status="checking", status_detail="It is being checked.")
        except NotFoundError:
            return server

    async def check_all(self) -> Sequence[Server]:
        """Check all hosts, or join the round in progress; return the servers by name, after ROUND_SECONDS at most.

        A host not checked by then, because too many others don't answer, keeps its state; its check is still pending.
        """
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._ask_all(), name="check all")
            self._round.add_done_callback(_log_failure)
        return await asyncio.shield(self._round)

    def begin(self, server_id: UUID) -> asyncio.Task[Server]:
        """Begin a check in the background, or return the one in progress."""
        task = self._checks.get(server_id)
        if task is None:
            task = self._checks[server_id] = asyncio.create_task(self._check(server_id), name=f"check {server_id}")
            task.add_done_callback(lambda _: self._checks.pop(server_id, None))
            task.add_done_callback(_log_failure)
        return task

    async def close(self) -> None:
        """Cancel all checks."""
        tasks = [*self._checks.values(), *([self._round] if self._round else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_all(self) -> Sequence[Server]:
        async with self._database.read() as connection:
            servers = await store.all_servers(connection)
        if servers:
            try:
                checks = asyncio.wait([self.begin(server.id) for server in servers])
                await within(ROUND_SECONDS, checks, self._clock)
            except TimeoutError:
                log.warning("checks_are_late", servers=len(servers), still_asked=len(self._checks))
        async with self._database.read() as connection:
            return await store.all_servers(connection)

    async def _check(self, server_id: UUID) -> Server:
        async with self._slots:
            server = await self._get(server_id)
            while True:
                await self._ask(server)
                asked, server = server, await self._get(server_id)
                # If the connection data changed in the meantime, another host may have answered: check again.
                if _connection_key(asked) == _connection_key(server):
                    return server

    async def _ask(self, server: Server) -> None:
        try:
            info = await within(self._seconds, self._info(server), self._clock)
        except HostUnreachableError as error:
            self._signals.host_checked.emit("unreachable")
            await self._lost(server, error.sentence)
        except TimeoutError:
            self._signals.host_checked.emit("timeout")
            await self._lost(server, f"The host gave no answer within {self._seconds:.0f} seconds.")
        else:
            self._signals.host_checked.emit("answered")
            await self._observations.host_seen(server.id, info)

    async def _info(self, server: Server) -> HostInfo:
        return await self._hosts.transport(server).info()

    async def _lost(self, server: Server, sentence: str) -> None:
        await self._observations.host_lost(server.id, sentence)
        if server.status == "online":
            # An open watch reports only changes, so not that the host is back: restart it.
            self._signals.server_changed.emit(server.id)

    async def _get(self, server_id: UUID) -> Server:
        async with self._database.read() as connection:
            server = await store.get(connection, server_id)
        if server is None:
            raise NotFoundError("server_not_found", "There is no server of that id.")
        return server


async def _shielded(task: asyncio.Task[T]) -> T:
    """Wait for a task that continues if the wait is cancelled."""
    return await asyncio.shield(task)


def _connection_key(server: Server) -> tuple[object, ...]:
    ssh = (server.address, server.ssh_user, server.ssh_port, server.encrypted_credentials)
    return (server.api_endpoint, server.agent_name, *ssh)


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Log an unexpected failure, as no caller may be waiting for the task."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, NotFoundError):
        log.error("check_failed", task=task.get_name(), exc_info=error)
