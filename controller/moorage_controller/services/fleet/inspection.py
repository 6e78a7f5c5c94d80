"""Live inspection of hosts: an app's containers and logs, and Compose projects that no app uses yet."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NoReturn, TypeVar
from uuid import UUID

from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, is_orphan

from moorage_controller.auth.stream_shares import StreamShares
from moorage_controller.errors import ConflictError, ForbiddenError, HostUnreachableError, NotFoundError
from moorage_controller.hosts.transport import (
    ContactLostError,
    HostApp,
    HostProject,
    HostRefusedError,
    Hosts,
)
from moorage_controller.services.fleet.directories import directories
from moorage_controller.services.operations import last_logs
from moorage_controller.services.runs.transitions import host_app
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import last_logs as last_log_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.servers import Server

T = TypeVar("T")
Lines = AsyncGenerator[Sequence[LogLine], None]
First = asyncio.Future[Sequence[LogLine] | None]
"""The first batch of lines; None if there is none."""

_EPOCH = datetime.fromtimestamp(0, UTC)
_WHOLE_SECONDS = 75.0
"""Total time limit of a log that isn't followed; the host's own limit is one minute."""
_FIRST_SECONDS = 3.0
"""How long to wait for a refusal by the host when following a log; a log without output sends nothing."""


@dataclass(frozen=True, slots=True)
class ShownContainer:
    """A container of an app; `orphan`: its service is no longer in the app's Compose files."""

    state: ContainerState
    orphan: bool


class Inspection:
    """Queries hosts live. Every method raises HostUnreachableError and NotFoundError."""

    def __init__(self, database: Database, hosts: Hosts, shares: StreamShares) -> None:
        self._database = database
        self._hosts = hosts
        self._shares = shares

    async def services(self, app_id: UUID) -> Sequence[ShownContainer]:
        """Return an app's containers, sorted by service and name. Raises ForbiddenError by the host's policy."""
        server, app = await self._app(app_id)
        seen = await _translate_host_errors(self._hosts.transport(server).observe(app))
        found = sorted(seen.containers, key=lambda c: (c.service, c.name))
        return [ShownContainer(container, is_orphan(container, seen.replicas)) for container in found]

    async def discover(self, server_id: UUID) -> Sequence[HostProject]:
        """Return the Compose projects of a host that no app uses, sorted by name."""
        async with self._database.read() as connection:
            server = await server_store.get(connection, server_id)
            apps = await app_store.on_server(connection, server_id)
        if server is None:
            raise NotFoundError("server_not_found", "There is no server of that id.")
        found = await _translate_host_errors(self._hosts.transport(server).projects())
        named = set[str]().union(*map(directories, apps))
        unnamed = [project for project in found if project.project.directory not in named]
        return sorted(unnamed, key=lambda each: (each.project.name, each.project.directory))

    async def logs(self, app_id: UUID, wanted: LogsWanted, held: ExitStack, ago: timedelta | None = None) -> Lines:
        """Return an app's log lines in batches; a refusal by the host is raised here, before the iteration.

        `ago` replaces `since` in `wanted`, counted back from now. The stream takes one of the host's slots until `held`
        is closed. If a stopped app has no lines left, the lines kept at its stop are returned. Raises NotFoundError
        `service_not_found`; ConflictError `too_many_logs`; TooManyRequestsError `too_many_streams`;
        ForbiddenError.
        """
        server, app = await self._app(app_id)
        async with self._database.read() as connection:
            if ago is not None:
                wanted = replace(wanted, since=engine_time(await self._database.now(connection) - ago))
            kept = last_logs.shown(await last_log_store.of_stopped(connection, app_id), wanted)
        held.enter_context(self._shares.of_host(server.id))
        try:
            first, lines = await self._begin(server, app, wanted)
        except (NotFoundError, HostUnreachableError):
            if not kept:
                raise
            return _only(kept)
        return _prepend([] if first.done() and first.result() else kept, first, lines)

    async def _begin(self, server: Server, app: HostApp, wanted: LogsWanted) -> tuple[First, Lines]:
        """Request logs, and wait for a refusal by the host."""
        told = self._hosts.transport(server).logs(app, wanted)
        lines = told if wanted.follow else _within(told, _WHOLE_SECONDS)
        first = asyncio.ensure_future(anext(lines, None))
        try:
            await asyncio.wait({first}, timeout=_FIRST_SECONDS if wanted.follow else None)
            if first.done():
                await _translate_host_errors(first)
        except BaseException:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await lines.aclose()
            raise
        return first, lines

    async def _app(self, app_id: UUID) -> tuple[Server, HostApp]:
        server: Server | None = None
        async with self._database.read() as connection:
            app = await app_store.get(connection, app_id)
            if app is not None:
                server = await server_store.get(connection, app.server_id)
        if app is None or server is None:
            raise NotFoundError("app_not_found", "There is no app of that id.")
        return server, host_app(app)


def engine_time(moment: datetime) -> str:
    """Format a time as the Engine does; times before 1970 become 1970, the Engine's earliest."""
    return max(moment, _EPOCH).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


async def _within(lines: Lines, seconds: float) -> Lines:
    """Pass on batches within a total time limit. Raises ContactLostError at the limit."""
    limit = asyncio.get_running_loop().time() + seconds
    async with aclosing(lines):
        try:
            while True:
                async with asyncio.timeout_at(limit):
                    batch = await anext(lines, None)
                if batch is None:
                    return
                yield batch
        except TimeoutError:
            raise ContactLostError(f"The host did not send the whole log within {seconds:.0f} seconds.") from None


async def _only(kept: Sequence[LogLine]) -> Lines:
    yield kept


async def _prepend(kept: Sequence[LogLine], first: First, lines: Lines) -> Lines:
    try:
        if kept:
            yield kept
        async with aclosing(lines):
            batch = await _translate_host_errors(first)
            while batch is not None:
                yield batch
                batch = await _translate_host_errors(anext(lines, None))
    finally:
        first.cancel()


async def _translate_host_errors(answer: Awaitable[T]) -> T:
    """Return a host's answer; translate transport errors into those of the API."""
    try:
        return await answer
    except HostRefusedError as error:
        _raise(error)
    except ContactLostError as error:
        raise HostUnreachableError(str(error), error.code) from None


def _raise(error: HostRefusedError) -> NoReturn:
    if error.code == "service_not_found":
        raise NotFoundError(error.code, error.sentence) from None
    if error.code == "too_many_logs":
        raise ConflictError(error.code, error.sentence) from None
    if error.code == "path_not_allowed":
        raise ForbiddenError(error.code, error.sentence) from None
    raise HostUnreachableError(error.sentence, error.code) from None
