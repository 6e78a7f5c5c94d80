"""Read-only queries for users: the Compose projects on this host, and the logs of an app's containers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import ProjectContainers, by_project
from moorage_common.docker.engine_http import EngineProblemError, Stream
from moorage_common.docker.logs import Budget, LogLine, Logs, LogsWanted
from moorage_common.docker.states import ContainerState, Project
from moorage_common.untrusted import UntrustedError

from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.docker.engine import Engine
from moorage_agent.docker.observer import Observer
from moorage_agent.errors import RefusalError

_MOST_FOLLOWED = 128
"""Concurrent log streams: each is a connection to the Engine."""


class Inspection:
    """Read-only queries."""

    def __init__(self, engine: Engine, observer: Observer, identities: Identities, socket: Path) -> None:
        self._engine = engine
        self._observer = observer
        self._identities = identities
        self._socket = socket
        self._budget = Budget(_MOST_FOLLOWED)

    async def identity(self, app: WatchedApp) -> AppIdentity:
        """Return the current identity of an app. Raises RefusalError if the policy doesn't allow its directory."""
        (identity,) = await self._identities.current([app])
        if not identity.real_directory:
            raise RefusalError(identity.problem_code, identity.problem)
        return identity

    async def projects(self) -> dict[Project, ProjectContainers]:
        """Return the projects whose directories the policy allows. Raises EngineUnreachableError."""
        found = by_project((await asyncio.to_thread(self._engine.containers)).values())
        allowed = await self._identities.allowed_directories({project.directory for project in found})
        return {project: theirs for project, theirs in found.items() if project.directory in allowed}

    async def logs(self, app: WatchedApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of lines. Raises RefusalError, UnknownServiceError, TooManyLogsError, EngineProblemError."""
        identity = await self.identity(app)

        async def list_containers() -> list[ContainerState]:
            return [c.state for c in (await asyncio.to_thread(self._engine.containers, identity.owns)).values()]

        async def known() -> list[ContainerState]:
            # From the observer: no thread that an operation may need blocks on a hanging Engine.
            return [c.state for c in self._observer.containers.values() if identity.owns(c)]

        async with aclosing(Logs(self._dial, list_containers, known, wanted, self._budget).lines()) as batches:
            async for batch in batches:
                yield batch

    @asynccontextmanager
    async def _dial(self) -> AsyncIterator[Stream]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError as error:
            raise EngineProblemError(
                f"The Docker Engine at {self._socket} doesn't answer: see on the host that it runs ({error.strerror})."
            ) from None
        try:
            yield _Socket(reader, writer)
        except UntrustedError as error:
            raise EngineProblemError(f"The Docker Engine said too much: {error}") from None
        except ConnectionError as error:
            raise EngineProblemError(f"The Docker Engine broke off ({error}): see on the host that it runs.") from None
        finally:
            writer.transport.abort()


class _Socket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        return await self._reader.read(limit)

    def write(self, data: bytes) -> None:
        self._writer.write(data)
