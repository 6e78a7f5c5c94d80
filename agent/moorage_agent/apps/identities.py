"""Resolution of paths to apps under this host's policy; cached, without Compose, while an app's files don't change."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from posixpath import normpath

import structlog
from moorage_common.docker.app_identity import UNREADABLE, AppIdentity, nonsense
from moorage_common.docker.states import Project
from moorage_common.journal.types import Refused

from moorage_agent.apps.directories import Asked, Directories, Known, Place, reason
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.errors import DirectoryHangsError, RefusalError
from moorage_agent.listeners import Listeners

log = structlog.get_logger(__name__)

_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""Short, because the fix may be outside the files that were read."""
_PATIENCE_SECONDS = 1.0
"""How long the updates of other apps may wait for one app."""
_FIRST_PATIENCE_SECONDS = 5.0
"""The same, if nothing is known of that app yet."""
_HANG_SECONDS = 5.0
_READ_SECONDS = 45.0
_MAX_CONCURRENT = 2
"""Processes of Compose are heavy: a host with a hundred apps must not start a hundred."""


@dataclass(frozen=True, slots=True)
class WatchedApp:
    """An app as the controller describes it."""

    cd_path: str
    last_project: Project | None
    compose_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pending:
    """A question about an app that continues even if its callers stop waiting."""

    task: asyncio.Task[AppIdentity]
    since: float = field(default_factory=time.monotonic)


class Identities(Listeners):
    """Resolves paths to apps. A separate process answers its questions about directories, and may hang."""

    def __init__(self, reader: DirectoryReader) -> None:
        super().__init__()
        self._reader = reader
        self._known: dict[Place, tuple[Known, float]] = {}
        """The last result of each place, and the monotonic time until which it is valid."""
        self._seen: dict[Place, Project] = {}
        """The last project read in each place, kept even if its files changed."""
        self._real: dict[str, str] = {}
        """The last known real directory of each path."""
        self._last: dict[Place, AppIdentity] = {}
        """The last known identity of each path (with the compose files that its app names)."""
        self._pending: dict[WatchedApp, _Pending] = {}
        self._reading: dict[Place, asyncio.Task[Known]] = {}
        self._said: set[Place] = set()
        self._turns = asyncio.Semaphore(_MAX_CONCURRENT)

    async def ask(self, app: WatchedApp) -> AppIdentity:
        """Ask Compose now. Raises RefusalError if the policy doesn't allow the directory, or if it hangs.

        A compose file elsewhere, found in a parent directory or named by a setting, is a problem that forbids a start.
        """
        real = await self._real_directory(app.cd_path)
        known = await self._read_alone((real, app.compose_files))
        return _whole(await self._ask_allowed(_identity(app, real, known)))

    async def for_stop(self, app: WatchedApp) -> AppIdentity:
        """Return an app's identity without reading its folder or asking Compose.

        It has the real directory and the project last read there, besides the given one. If the directory hangs, the
        real directory is the last known one. Raises RefusalError if the policy doesn't allow the directory.
        """
        try:
            real = await self._real_directory(app.cd_path)
            known = AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)
            return _whole(await self._ask_allowed(known))
        except DirectoryHangsError:
            return _whole(await self._unresolved(app))

    async def recheck(self, identity: AppIdentity) -> Refused | None:
        """Check an app's files again, right before Compose uses them."""
        try:
            real, files = identity.real_directory, tuple(identity.compose_files)
            await self._reader.ask(Directories.recheck, real, _HANG_SECONDS, real, files)
        except RefusalError as error:
            return Refused(error.code, str(error))
        return None

    async def current(self, apps: Sequence[WatchedApp]) -> list[AppIdentity]:
        """Return the identities of apps, in the given order; Compose is only asked about apps whose files changed.

        An app outside the policy has only the reason. A slow one has its last identity, and one whose directory hangs
        has that as its problem: the others don't wait.
        """
        return await asyncio.gather(*(self._soon(app) for app in apps))

    async def allowed_directories(self, directories: Collection[str]) -> set[str]:
        """Return the subset of real directories that the policy allows."""

        async def allowed(directory: str) -> bool:
            try:
                await self._real_directory(directory, _PATIENCE_SECONDS)
            except DirectoryHangsError:
                return bool((await self._unresolved(WatchedApp(directory, None))).real_directory)
            except RefusalError:
                return False
            return True

        found = await asyncio.gather(*(allowed(directory) for directory in directories))
        return {directory for directory, is_allowed in zip(directories, found, strict=True) if is_allowed}

    async def _real_directory(self, cd_path: str, seconds: float = _HANG_SECONDS) -> str:
        return await self._reader.ask(Directories.real_directory, cd_path, seconds, cd_path)

    async def _soon(self, app: WatchedApp) -> AppIdentity:
        """Return an app's current identity, or the last one if that takes long."""
        pending = self._pending.get(app)
        if pending is None:
            task = asyncio.create_task(self._now(app), name=f"identify {app.cd_path}")
            pending = self._pending[app] = _Pending(task)
            task.add_done_callback(lambda _: self._pending.pop(app, None))
        last = self._last.get((app.cd_path, app.compose_files))
        patience = _FIRST_PATIENCE_SECONDS if last is None else _PATIENCE_SECONDS
        left = pending.since + patience - time.monotonic()
        done, _ = await asyncio.wait({pending.task}, timeout=max(left, 0))
        if done:
            return pending.task.result()
        pending.task.add_done_callback(lambda _: self._notify_listeners())
        if last is None:
            return await self._unresolved(app)
        return replace(last, last_project=app.last_project)

    async def _now(self, app: WatchedApp) -> AppIdentity:
        """Return an app's current identity and cache it."""
        real = self._real.get(app.cd_path, "")
        known, until = self._known.get((real, app.compose_files), (None, 0.0))
        known = known if time.monotonic() < until else None
        asked = Asked(app.cd_path, app.last_project, app.compose_files, known)
        identity: AppIdentity | None
        try:
            real, identity = await self._reader.ask(Directories.current, app.cd_path, _HANG_SECONDS, asked)
            self._real[app.cd_path] = real
            if identity is None:
                identity = await self._read_soon(app, real)
        except DirectoryHangsError as error:
            identity = await self._unresolved(app)
            if identity.real_directory:
                identity = replace(identity, problem_code=error.code, problem=str(error))
        except RefusalError as error:
            identity = reason(app.cd_path, error)
        self._last[app.cd_path, app.compose_files] = identity
        return identity

    async def _unresolved(self, app: WatchedApp) -> AppIdentity:
        """Return the identity of an app whose directory doesn't answer, with its last known real directory."""
        real = self._real.get(app.cd_path) or normpath(app.cd_path)
        identity = AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)
        try:
            return await self._reader.ask(Directories.allowed_unresolved, identity.cd_path, _HANG_SECONDS, identity)
        except RefusalError as error:
            return reason(app.cd_path, error)

    async def _read_soon(self, app: WatchedApp, real: str) -> AppIdentity:
        """Read a directory, once for all concurrent callers; a cancelled caller doesn't cancel it for the others."""
        place = real, app.compose_files
        reading = self._reading.get(place)
        if reading is None:
            reading = self._reading[place] = asyncio.create_task(self._read_in_turn(place), name=f"read {real}")
            reading.add_done_callback(lambda _: self._reading.pop(place, None))
        known = await asyncio.shield(reading)
        return await self._ask_allowed(_identity(app, real, known))

    async def _ask_allowed(self, identity: AppIdentity) -> AppIdentity:
        return await self._reader.ask(Directories.allowed, identity.cd_path, _HANG_SECONDS, identity)

    async def _read_in_turn(self, place: Place) -> Known:
        async with self._turns:
            return await self._read_alone(place)

    async def _read_alone(self, place: Place) -> Known:
        """Read a directory; a failure becomes a problem of that app alone. Raises DirectoryHangsError."""
        failure = None
        try:
            known = await self._reader.ask(Directories.read, place[0], _READ_SECONDS, place)
        except DirectoryHangsError:
            raise
        except Exception as error:  # noqa: BLE001 - logged below, and reported as this app's problem
            known, failure = Known(place, nonsense(place[0], ()), None, None), error
        self._say(known, failure)
        if known.reading.project is not None:
            self._seen[place] = known.reading.project
        keep = _KEEP_PROBLEM_SECONDS if known.reading.problem_code else _KEEP_SECONDS
        self._known[place] = known, time.monotonic() + keep
        return known

    def _say(self, known: Known, error: Exception | None) -> None:
        """Log an unreadable directory once, not at each reading."""
        if known.reading.problem_code != UNREADABLE:
            self._said.discard(known.place)
        elif known.place not in self._said:
            self._said.add(known.place)
            log.warning(UNREADABLE, directory=known.place[0], exc_info=error)


def _identity(app: WatchedApp, real: str, known: Known) -> AppIdentity:
    return known.reading.identity(app.cd_path, real, app.last_project, app.compose_files)


def _whole(identity: AppIdentity) -> AppIdentity:
    """Return an identity that the policy allows. Raises RefusalError with the reason if it doesn't."""
    if not identity.real_directory:
        raise RefusalError(identity.problem_code, identity.problem)
    return identity
