"""Which app a path is, on this host and by its policy; known without asking Compose while its files stay the same."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage_common.states import Project

from moorage_agent.errors import RefusalError
from moorage_agent.policy import Policy
from moorage_agent.projects import AppIdentity, Reading, read_project

_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""A file that the compose file includes may have mended it: that changes none of the files looked at."""
_AT_ONCE = 2
"""Processes of Compose are heavy: a host with a hundred apps must not start a hundred."""

_CLOCK_TICK_NS = 20_000_000

_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class WatchedApp:
    """An app as the controller names it."""

    cd_path: str
    last_project: Project | None


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    stamp: _Stamp
    until: float


class Identities:
    """Resolves paths to apps. `environment` is what a clean environment for Compose is made from."""

    def __init__(self, policy: Policy, compose: str, environment: Mapping[str, str]) -> None:
        self._policy = policy
        self._compose = compose
        self._environment = environment
        self._known: dict[str, _Known] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, cd_path: str, last_project: Project | None) -> AppIdentity:
        """Ask Compose now. Raises RefusalError where the policy doesn't allow the directory."""
        real = await asyncio.to_thread(self._policy.real_directory, cd_path)
        reading = await self._read(real)
        return reading.identity(cd_path, real, last_project)

    async def current(self, apps: Sequence[WatchedApp]) -> list[AppIdentity]:
        """Return what apps are, in their order; Compose is asked only where its files changed since it was asked.

        Of one outside the policy there is nothing but the reason.
        """
        found = await asyncio.to_thread(lambda: [self._look(app) for app in apps])
        return list(await asyncio.gather(*(self._answer(app, *seen) for app, seen in zip(apps, found, strict=True))))

    def _look(self, app: WatchedApp) -> tuple[str | RefusalError, Reading | None]:
        try:
            real = self._policy.real_directory(app.cd_path)
        except RefusalError as error:
            return error, None
        known = self._known.get(real)
        if known is None or time.monotonic() > known.until or _stamp(known.reading.files) != known.stamp:
            return real, None
        return real, known.reading

    async def _answer(self, app: WatchedApp, real: str | RefusalError, reading: Reading | None) -> AppIdentity:
        if isinstance(real, RefusalError):
            return AppIdentity(app.cd_path, "", None, None, real.code, str(real))
        return (reading or await self._read(real)).identity(app.cd_path, real, app.last_project)

    async def _read(self, real: str) -> Reading:
        async with self._turns:
            began_ns = time.time_ns()
            reading = await read_project(self._compose, real, self._environment)
        stamp = await asyncio.to_thread(_stamp, reading.files)
        if any(about is not None and about[0] >= began_ns - _CLOCK_TICK_NS for about in stamp):
            # Changed while it was read, or in the same tick of the file system's clock: not to be relied on.
            self._known.pop(real, None)
        else:
            keep = _KEEP_PROBLEM_SECONDS if reading.problem_code else _KEEP_SECONDS
            self._known[real] = _Known(reading, stamp, time.monotonic() + keep)
        return reading


def _stamp(files: Sequence[str]) -> _Stamp:
    return tuple(_about(file) for file in files)


def _about(file: str) -> tuple[int, int, int] | None:
    try:
        about = Path(file).stat()
    except (OSError, ValueError):
        return None
    return about.st_ctime_ns, about.st_ino, about.st_size
