"""The remaining running time of each app, set by a controller; kept on disk, measured by the boot clock.

The boot clock can't be set. Only across a reboot the wall clock says how long the host was off: a wall clock that
went back counts as no time.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from moorage_common.docker.states import Project
from moorage_common.files import write_atomic

from moorage_agent.apps.identities import WatchedApp
from moorage_agent.docker.observer import boot_nanoseconds
from moorage_agent.errors import RefusalError
from moorage_agent.listeners import Listeners

log = structlog.get_logger(__name__)

_FORGET_SECONDS = 24 * 3600.0
_SAVE_SECONDS = 60.0
"""Interval of saving the remaining times: a reboot may add up to that much to them."""
_MOST_STOPS = 1000


@dataclass(frozen=True, slots=True)
class StoredDeadline:
    """The state of one app. `due` is seconds of the boot clock; without a `run_id` there is no deadline.

    `tries` counts this agent's own stops of the run; `changed` is when it was set, in seconds of the boot clock.
    """

    app_id: str
    cd_path: str
    project: Project | None
    number: int
    run_id: str
    due: float
    changed: float
    tries: int = 0


@dataclass(frozen=True, slots=True)
class DirectoryDeadlines:
    """A directory's state for a controller: deadline numbers by app, and this agent's own stops (operations) by app."""

    deadlines: Mapping[str, int] = field(default_factory=dict)
    stops: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """An operation by which this agent stopped an app itself, not yet followed to its end by a controller."""

    app_id: str
    cd_path: str
    operation_id: str


class Deadlines(Listeners):
    """The deadlines of this host's apps."""

    def __init__(
        self,
        file: Path,
        boot_id: str,
        *,
        boot_clock: Callable[[], float] = lambda: boot_nanoseconds() / 1e9,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._file = file
        self._boot_id = boot_id
        self._wall_clock = wall_clock
        self.boot_clock = boot_clock
        self._held: dict[str, StoredDeadline] = {}
        self._stops: list[Stop] = []
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Load the stored deadlines. An unreadable file is logged and renamed."""
        try:
            self._read(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("deadlines_unreadable", file=str(self._file), error=str(error))
            with suppress(OSError):
                self._file.replace(self._file.with_suffix(".unreadable"))

    @property
    def held(self) -> Sequence[StoredDeadline]:
        """The existing deadlines."""
        return [held for held in self._held.values() if held.run_id]

    def of(self, cd_path: str) -> DirectoryDeadlines:
        """Return the state of the apps in a directory."""
        return DirectoryDeadlines(
            {held.app_id: held.number for held in self.held if held.cd_path == cd_path},
            {stop.app_id: stop.operation_id for stop in self._stops if stop.cd_path == cd_path},
        )

    async def set(self, app: WatchedApp, app_id: str, number: int, run_id: str, remaining: float) -> None:
        """Store a deadline, `remaining` seconds from now; one with an older number is ignored.

        When it returns, the deadline is on disk. Raises RefusalError if it can't be written.
        """
        now = self.boot_clock()
        known = self._held.get(app_id)
        if known is not None and number < known.number:
            return
        same = known is not None and known.run_id == run_id and known.number == number
        tries = known.tries if same and known is not None else 0
        project = app.last_project
        if project is None and known is not None and known.cd_path == app.cd_path:
            project = known.project
        await self._change(StoredDeadline(app_id, app.cd_path, project, number, run_id, now + remaining, now, tries))

    async def called(self, cd_path: str, project: Project) -> None:
        """Store the project name under which the apps of a directory are started: a stop uses it.

        Raises RefusalError if it can't be written.
        """
        for held in self.held:
            if held.cd_path == cd_path and held.project != project:
                await self._change(replace(held, project=project))

    async def record_attempt(self, held: StoredDeadline, *, stopped: bool) -> None:
        """Record the result of this agent's own stop; a stopped app has no deadline any more.

        A write error is ignored: a repeated stop by the next agent process does no harm.
        """
        if self._held.get(held.app_id) == held:
            self._held[held.app_id] = replace(held, run_id="") if stopped else replace(held, tries=held.tries + 1)
            await self._try_to_save()
            self._notify_listeners()

    async def record_stop(self, held: StoredDeadline, operation_id: str) -> None:
        """Record a stop by this agent itself, to be reported to the controller."""
        if all(stop.operation_id != operation_id for stop in self._stops):
            self._stops = [*self._stops, Stop(held.app_id, held.cd_path, operation_id)][-_MOST_STOPS:]
            await self._try_to_save()
            self._notify_listeners()

    async def forget_stop(self, operation_id: str) -> None:
        """Forget a stop whose end a controller has received."""
        left = [stop for stop in self._stops if stop.operation_id != operation_id]
        if len(left) < len(self._stops):
            self._stops = left
            # If that fails, the stop is reported again after a restart, which does no harm.
            await self._try_to_save()
            self._notify_listeners()

    async def run(self) -> None:
        """Save the remaining times periodically, until cancelled."""
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            if self._held:
                await self._try_to_save()

    async def _try_to_save(self) -> None:
        try:
            await self._save()
        except RefusalError as error:
            log.warning("deadlines_not_saved", error=str(error))

    async def _change(self, held: StoredDeadline) -> None:
        old = self._held.get(held.app_id)
        self._held[held.app_id] = held
        try:
            await self._save()
        except RefusalError:
            # Unsaved: back to the old deadline, unless the new one ends it or comes sooner.
            if self._held.get(held.app_id) == held and not _comes_sooner(held, old):
                self._held.pop(held.app_id)
                if old is not None:
                    self._held[held.app_id] = old
            raise
        self._notify_listeners()

    async def _save(self) -> None:
        async with self._writing:
            now = self.boot_clock()
            # Numbers of ended runs are kept for a while: an older deadline may still be in transit.
            self._held = {k: h for k, h in self._held.items() if h.run_id or now - h.changed < _FORGET_SECONDS}
            content = {
                "bootId": self._boot_id,
                "bootClock": now,
                "wallClock": self._wall_clock(),
                "held": [asdict(held) for held in self._held.values()],
                "stops": [asdict(stop) for stop in self._stops],
            }
            try:
                await asyncio.to_thread(write_atomic, self._file, json.dumps(content).encode(), mode=0o600)
            except OSError as error:
                sentence = f"The agent can't keep deadlines in {self._file}: {error.strerror}."
                raise RefusalError("deadlines_not_kept", sentence) from None

    def _read(self, content: Mapping[str, Any]) -> None:
        passed = 0.0
        if content["bootId"] != self._boot_id:
            # The off time, as far as the wall clock can be trusted; the boot clock started again at zero.
            off = max(self._wall_clock() - content["wallClock"], 0.0)
            passed = content["bootClock"] + off - self.boot_clock()
        for each in content["held"]:
            project = Project(**each["project"]) if each["project"] else None
            held = StoredDeadline(**{**each, "project": project})
            self._held[held.app_id] = replace(held, due=held.due - passed, changed=held.changed - passed)
        self._stops = [Stop(**each) for each in content["stops"]]


def _comes_sooner(held: StoredDeadline, old: StoredDeadline | None) -> bool:
    if old is None or held.project != old.project:
        return False
    return not held.run_id or (held.run_id == old.run_id and held.due <= old.due)
