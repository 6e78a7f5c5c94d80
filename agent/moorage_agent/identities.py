"""Which app a path is, on this host and by its policy; known without asking Compose while its files stay the same."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from moorage_common.app_identity import UNREADABLE, AppIdentity, Reading, nonsense
from moorage_common.compose_rules import Rules
from moorage_common.journal_types import Refused
from moorage_common.states import Project

from moorage_agent.errors import RefusalError
from moorage_agent.policy import Policy
from moorage_agent.projects import check_files, read_project

log = structlog.get_logger(__name__)

_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""What mends it need not be one of the files that were looked at."""
_PATIENCE_SECONDS = 5.0
_AT_ONCE = 2
"""Processes of Compose are heavy: a host with a hundred apps must not start a hundred."""

_PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

_CLOCK_TICK_NS = 20_000_000

_Place = tuple[str, tuple[str, ...]]
"""A real directory, and the files there that an app says are its own."""
_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class WatchedApp:
    """An app as the controller names it."""

    cd_path: str
    last_project: Project | None
    compose_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    rules: Rules
    stamp: _Stamp
    until: float


class Identities:
    """Resolves paths to apps. `environment` is what a clean environment for Compose is made from."""

    def __init__(self, policy: Policy, compose: str, environment: Mapping[str, str]) -> None:
        self._policy = policy
        self._compose = compose
        self._environment = environment
        self._known: dict[_Place, _Known] = {}
        self._seen: dict[_Place, Project] = {}
        """The last project that was read in each place, whatever became of its files."""
        self._last: dict[_Place, Reading] = {}
        self._reading: dict[_Place, asyncio.Task[Reading]] = {}
        self._said: set[_Place] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, app: WatchedApp) -> AppIdentity:
        """Ask Compose now. Raises RefusalError where the policy doesn't allow the directory.

        A compose file elsewhere, which Compose found above or a setting names, is a problem that forbids a start.
        """
        real = await asyncio.to_thread(self._policy.real_directory, app.cd_path)
        reading = await self._read_alone((real, app.compose_files))
        identity = await asyncio.to_thread(self._allowed, _identity(app, real, reading))
        if not identity.real_directory:
            raise RefusalError(identity.problem_code, identity.problem)
        return identity

    async def for_stop(self, app: WatchedApp) -> AppIdentity:
        """Return what is known of an app without reading anything in its folder, nor asking Compose.

        That is its real directory, and the project it was last read as, besides the given one. Raises RefusalError
        where the policy doesn't allow the directory.
        """
        real = await asyncio.to_thread(self._policy.real_directory, app.cd_path)
        known = AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)
        identity = await asyncio.to_thread(self._allowed, known)
        if not identity.real_directory:
            raise RefusalError(identity.problem_code, identity.problem)
        return identity

    async def recheck(self, identity: AppIdentity) -> Refused | None:
        """Look through an app's files once more, right before Compose works with them."""
        try:
            real = await asyncio.to_thread(self._policy.real_directory, identity.real_directory)
            rules = await asyncio.to_thread(self._policy.rules)
            files = identity.compose_files
            walked = await asyncio.to_thread(check_files, real, self._environment, rules, files)
        except RefusalError as error:
            return Refused(error.code, str(error))
        return walked.refusal

    async def current(self, apps: Sequence[WatchedApp]) -> list[AppIdentity]:
        """Return what apps are, in their order; Compose is asked only where its files changed since it was asked.

        Of one outside the policy there is nothing but the reason.
        """
        found = await asyncio.to_thread(lambda: [self._look(app) for app in apps])
        answers = await asyncio.gather(*(self._answer(app, *seen) for app, seen in zip(apps, found, strict=True)))
        return await asyncio.to_thread(lambda: [self._allowed(i) if i.real_directory else i for i in answers])

    def _look(self, app: WatchedApp) -> tuple[str | RefusalError, Reading | None]:
        try:
            real = self._policy.real_directory(app.cd_path)
            rules = self._policy.rules()
        except RefusalError as error:
            return error, None
        except (OSError, ValueError) as error:
            return RefusalError("invalid_request", f"{app.cd_path!a} can't be a directory on the host: {error}."), None
        known = self._known.get((real, app.compose_files))
        if known is None or time.monotonic() > known.until or rules != known.rules:
            return real, None
        if _stamp(known.reading.files) != known.stamp:
            return real, None
        return real, known.reading

    async def _answer(self, app: WatchedApp, real: str | RefusalError, reading: Reading | None) -> AppIdentity:
        if isinstance(real, RefusalError):
            return _reason(app.cd_path, real)
        return _identity(app, real, reading or await self._read_soon((real, app.compose_files)))

    def _allowed(self, identity: AppIdentity) -> AppIdentity:
        """Take away what lies outside the policy: nobody's app is reached, or shown, through another's directory."""
        try:
            # Again: the policy may have changed while Compose was asked.
            self._policy.real_directory(identity.real_directory)
        except RefusalError as error:
            return _reason(identity.cd_path, error)
        last = identity.last_project
        if last is not None and self._refusal(last) is not None:
            identity = replace(identity, last_project=None)
        refusal = None if identity.project is None else self._refusal(identity.project)
        if refusal is None:
            return identity
        return replace(identity, project=None, problem_code=refusal.code, problem=str(refusal), replicas={})

    def _refusal(self, project: Project) -> RefusalError | None:
        if not _PROJECT_NAME.fullmatch(project.name):
            return RefusalError("invalid_request", f"{project.name!a} can't be the name of a Compose project.")
        try:
            self._policy.real_directory(project.directory)
        except RefusalError as error:
            return error
        return None

    async def _read_soon(self, place: _Place) -> Reading:
        """Read one directory, or return what it was last read as where that takes long: the others don't wait."""
        reading = self._reading.get(place)
        if reading is None:
            reading = self._reading[place] = asyncio.create_task(self._read_alone(place), name=f"read {place[0]}")
            reading.add_done_callback(lambda _: self._reading.pop(place, None))
        last = self._last.get(place)
        done, _ = await asyncio.wait({reading}, timeout=None if last is None else _PATIENCE_SECONDS)
        return last if last is not None and not done else await reading

    async def _read_alone(self, place: _Place) -> Reading:
        """Read one directory; whatever goes wrong with it is no other's trouble."""
        try:
            reading = await self._read(place)
        except Exception as error:  # noqa: BLE001 - logged below, and told as this app's problem
            self._last[place] = nonsense(place[0], ())
            self._say(place, self._last[place], error)
            return self._last[place]
        self._say(place, reading)
        self._last[place] = reading
        return reading

    def _say(self, place: _Place, reading: Reading, error: Exception | None = None) -> None:
        """Log once, not with each look, that a directory can't be made sense of."""
        if reading.problem_code != UNREADABLE:
            self._said.discard(place)
        elif place not in self._said:
            self._said.add(place)
            log.warning(UNREADABLE, directory=place[0], exc_info=error)

    async def _read(self, place: _Place) -> Reading:
        async with self._turns:
            began_ns = time.time_ns()
            real, files = place
            try:
                rules = await asyncio.to_thread(self._policy.rules)
            except RefusalError as error:
                return Reading(None, (), error.code, str(error))
            reading = await read_project(self._compose, real, self._environment, rules, files)
        if reading.project is not None:
            self._seen[place] = reading.project
        stamp = await asyncio.to_thread(_stamp, reading.files)
        if any(about is not None and about[0] >= began_ns - _CLOCK_TICK_NS for about in stamp):
            # Changed while it was read, or in the same tick of the file system's clock: not to be relied on.
            self._known.pop(place, None)
        else:
            keep = _KEEP_PROBLEM_SECONDS if reading.problem_code else _KEEP_SECONDS
            self._known[place] = _Known(reading, rules, stamp, time.monotonic() + keep)
        return reading


def _identity(app: WatchedApp, real: str, reading: Reading) -> AppIdentity:
    return reading.identity(app.cd_path, real, app.last_project, app.compose_files)


def _reason(cd_path: str, refusal: RefusalError) -> AppIdentity:
    return AppIdentity(cd_path, "", None, None, refusal.code, str(refusal))


def _stamp(files: Sequence[str]) -> _Stamp:
    return tuple(_about(file) for file in files)


def _about(file: str) -> tuple[int, int, int] | None:
    try:
        about = Path(file).stat()
    except (OSError, ValueError):
        return None
    return about.st_ctime_ns, about.st_ino, about.st_size
