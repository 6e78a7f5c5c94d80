"""Which app a path is, on this host and by its policy; known without asking Compose while its files stay the same."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from posixpath import normpath

import structlog
from moorage_common.docker.app_identity import UNREADABLE, AppIdentity, nonsense
from moorage_common.docker.states import Project
from moorage_common.journal.types import Refused

from moorage_agent.apps.directories import Asked, Known, Place, reason
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.errors import DirectoryHangsError, RefusalError

log = structlog.get_logger(__name__)

_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""What mends it need not be one of the files that were looked at."""
_PATIENCE_SECONDS = 1.0
"""How long the news of other apps may wait for one."""
_FIRST_PATIENCE_SECONDS = 5.0
"""The same, where nothing is known of that one yet."""
_HANG_SECONDS = 5.0
_READ_SECONDS = 45.0
_MAX_CONCURRENT = 2
"""Processes of Compose are heavy: a host with a hundred apps must not start a hundred."""


@dataclass(frozen=True, slots=True)
class WatchedApp:
    """An app as the controller names it."""

    cd_path: str
    last_project: Project | None
    compose_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pending:
    """A question about an app that goes on, whoever has stopped waiting for it."""

    task: asyncio.Task[AppIdentity]
    since: float = field(default_factory=time.monotonic)


class Identities:
    """Resolves paths to apps. What it asks about directories, another process answers, or doesn't."""

    def __init__(self, reader: DirectoryReader) -> None:
        self._reader = reader
        self._known: dict[Place, tuple[Known, float]] = {}
        """What was read in each place, and until when it holds."""
        self._seen: dict[Place, Project] = {}
        """The last project that was read in each place, whatever became of its files."""
        self._real: dict[str, str] = {}
        """The real directory of each path, as it was last."""
        self._last: dict[Place, AppIdentity] = {}
        """What each path was (with the files that its app says are its own), the last time that it was known."""
        self._pending: dict[WatchedApp, _Pending] = {}
        self._reading: dict[Place, asyncio.Task[Known]] = {}
        self._said: set[Place] = set()
        self._turns = asyncio.Semaphore(_MAX_CONCURRENT)
        self._listeners: set[Callable[[], None]] = set()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called when what nobody waited for is known after all; returns what ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def ask(self, app: WatchedApp) -> AppIdentity:
        """Ask Compose now. Raises RefusalError where the policy doesn't allow the directory, or where it hangs.

        A compose file elsewhere, which Compose found above or a setting names, is a problem that forbids a start.
        """
        real = await self._real_directory(app.cd_path)
        known = await self._read_alone((real, app.compose_files))
        return _whole(await self._ask_allowed(_identity(app, real, known)))

    async def for_stop(self, app: WatchedApp) -> AppIdentity:
        """Return what is known of an app without reading anything in its folder, nor asking Compose.

        That is its real directory, and the project it was last read as, besides the given one. Where its directory
        hangs, that is the one it was last. Raises RefusalError where the policy doesn't allow the directory.
        """
        try:
            real = await self._real_directory(app.cd_path)
            known = AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)
            return _whole(await self._ask_allowed(known))
        except DirectoryHangsError:
            return _whole(await self._unresolved(app))

    async def recheck(self, identity: AppIdentity) -> Refused | None:
        """Look through an app's files once more, right before Compose works with them."""
        try:
            real, files = identity.real_directory, tuple(identity.compose_files)
            await self._reader.ask("recheck", real, real, files, seconds=_HANG_SECONDS)
        except RefusalError as error:
            return Refused(error.code, str(error))
        return None

    async def current(self, apps: Sequence[WatchedApp]) -> list[AppIdentity]:
        """Return what apps are, in their order; Compose is asked only where its files changed since it was asked.

        Of one outside the policy there is nothing but the reason. One that takes long is as it was last, and one
        whose directory hangs says so: the others don't wait.
        """
        return await asyncio.gather(*(self._soon(app) for app in apps))

    async def allowed_directories(self, directories: Collection[str]) -> set[str]:
        """Return those of some real directories that the policy allows."""

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
        real: str = await self._reader.ask("real_directory", cd_path, seconds=seconds)
        return real

    async def _soon(self, app: WatchedApp) -> AppIdentity:
        """Return what an app is now, or what it was last where that takes long."""
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
        pending.task.add_done_callback(self._tell)
        if last is None:
            return await self._unresolved(app)
        return replace(last, last_project=app.last_project)

    async def _now(self, app: WatchedApp) -> AppIdentity:
        """Return what an app is, and remember it."""
        real = self._real.get(app.cd_path, "")
        known, until = self._known.get((real, app.compose_files), (None, 0.0))
        known = known if time.monotonic() < until else None
        asked = Asked(app.cd_path, app.last_project, app.compose_files, known)
        identity: AppIdentity | None
        try:
            real, identity = await self._reader.ask("current", app.cd_path, asked, seconds=_HANG_SECONDS)
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
        """Return what is known of an app whose directory doesn't answer: its links are as they were last."""
        real = self._real.get(app.cd_path) or normpath(app.cd_path)
        identity = AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)
        try:
            return await self._ask_allowed(identity, "allowed_unresolved")
        except RefusalError as error:
            return reason(app.cd_path, error)

    async def _read_soon(self, app: WatchedApp, real: str) -> AppIdentity:
        """Read one directory, once for all who want it; whoever doesn't wait leaves the others waiting."""
        place = real, app.compose_files
        reading = self._reading.get(place)
        if reading is None:
            reading = self._reading[place] = asyncio.create_task(self._read_in_turn(place), name=f"read {real}")
            reading.add_done_callback(lambda _: self._reading.pop(place, None))
        known = await asyncio.shield(reading)
        return await self._ask_allowed(_identity(app, real, known))

    async def _ask_allowed(self, identity: AppIdentity, kind: str = "allowed") -> AppIdentity:
        allowed: AppIdentity = await self._reader.ask(kind, identity.cd_path, identity, seconds=_HANG_SECONDS)
        return allowed

    async def _read_in_turn(self, place: Place) -> Known:
        async with self._turns:
            return await self._read_alone(place)

    async def _read_alone(self, place: Place) -> Known:
        """Read one directory; whatever goes wrong with it is no other's trouble. Raises DirectoryHangsError."""
        failure = None
        try:
            known: Known = await self._reader.ask("read", place[0], place, seconds=_READ_SECONDS)
        except DirectoryHangsError:
            raise
        except Exception as error:  # noqa: BLE001 - logged below, and told as this app's problem
            known, failure = Known(place, nonsense(place[0], ()), None, None), error
        self._say(known, failure)
        if known.reading.project is not None:
            self._seen[place] = known.reading.project
        keep = _KEEP_PROBLEM_SECONDS if known.reading.problem_code else _KEEP_SECONDS
        self._known[place] = known, time.monotonic() + keep
        return known

    def _say(self, known: Known, error: Exception | None) -> None:
        """Log once, not with each look, that a directory can't be made sense of."""
        if known.reading.problem_code != UNREADABLE:
            self._said.discard(known.place)
        elif known.place not in self._said:
            self._said.add(known.place)
            log.warning(UNREADABLE, directory=known.place[0], exc_info=error)

    def _tell(self, _: object) -> None:
        for listener in tuple(self._listeners):
            listener()


def _identity(app: WatchedApp, real: str, known: Known) -> AppIdentity:
    return known.reading.identity(app.cd_path, real, app.last_project, app.compose_files)


def _whole(identity: AppIdentity) -> AppIdentity:
    """Return an identity that the policy allows. Raises RefusalError with the reason where it doesn't."""
    if not identity.real_directory:
        raise RefusalError(identity.problem_code, identity.problem)
    return identity
