"""How long each app may go on running, as a controller said; on disk, and counted by the clock that nobody sets.

The time is what remains, by the host's boot clock. Only over a reboot the wall clock says how long the host was off: a
clock that went back then counts as no time at all.
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

log = structlog.get_logger(__name__)

_FORGET_SECONDS = 24 * 3600.0
_SAVE_SECONDS = 60.0
"""How often what remains is written down: that much a reboot may add to it."""
_MOST_STOPS = 1000


@dataclass(frozen=True, slots=True)
class StoredDeadline:
    """What is known of one app. `due` is seconds of the boot clock; without a `run_id` there is no deadline.

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
    """What a controller is told of a directory: numbers by app, and this agent's own stops (operations) by app."""

    deadlines: Mapping[str, int] = field(default_factory=dict)
    stops: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """An operation by which this agent stopped an app itself, and that nobody has followed to its end yet."""

    app_id: str
    cd_path: str
    operation_id: str


class Deadlines:
    """The deadlines of this host's apps."""

    def __init__(
        self,
        file: Path,
        boot_id: str,
        *,
        boot_clock: Callable[[], float] = lambda: boot_nanoseconds() / 1e9,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._boot_id = boot_id
        self._wall_clock = wall_clock
        self.boot_clock = boot_clock
        self._held: dict[str, StoredDeadline] = {}
        self._stops: list[Stop] = []
        self._writing = asyncio.Lock()
        self._listeners: set[Callable[[], None]] = set()

    def load(self) -> None:
        """Read what the agent before this one knew. A file that can't be read is said, and laid aside."""
        try:
            self._read(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("deadlines_unreadable", file=str(self._file), error=str(error))
            with suppress(OSError):
                self._file.replace(self._file.with_suffix(".unreadable"))

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after every change; returns what ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    @property
    def held(self) -> Sequence[StoredDeadline]:
        """The deadlines there are."""
        return [held for held in self._held.values() if held.run_id]

    def of(self, cd_path: str) -> DirectoryDeadlines:
        """Return what is known of the apps in a directory."""
        return DirectoryDeadlines(
            {held.app_id: held.number for held in self.held if held.cd_path == cd_path},
            {stop.app_id: stop.operation_id for stop in self._stops if stop.cd_path == cd_path},
        )

    async def set(self, app: WatchedApp, app_id: str, number: int, run_id: str, remaining: float) -> None:
        """Keep a deadline, in `remaining` seconds from now; an older one than what is known changes nothing.

        Once it returns it is on disk. Raises RefusalError where the disk doesn't take it.
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
        """Note the project that the apps of a directory are started as: a stop works by it.

        Raises RefusalError where the disk doesn't take it.
        """
        for held in self.held:
            if held.cd_path == cd_path and held.project != project:
                await self._change(replace(held, project=project))

    async def record_attempt(self, held: StoredDeadline, *, stopped: bool) -> None:
        """Note how this agent's own stop ended; where the app is stopped, its deadline is over.

        It holds whether or not the disk takes it: what an agent after this one does once more does no harm.
        """
        if self._held.get(held.app_id) == held:
            self._held[held.app_id] = replace(held, run_id="") if stopped else replace(held, tries=held.tries + 1)
            await self._try_to_save()
            self._tell()

    async def record_stop(self, held: StoredDeadline, operation_id: str) -> None:
        """Note that this agent stops an app itself, to be told."""
        if all(stop.operation_id != operation_id for stop in self._stops):
            self._stops = [*self._stops, Stop(held.app_id, held.cd_path, operation_id)][-_MOST_STOPS:]
            await self._try_to_save()
            self._tell()

    async def forget_stop(self, operation_id: str) -> None:
        """Note that somebody knows how an operation ended."""
        left = [stop for stop in self._stops if stop.operation_id != operation_id]
        if len(left) < len(self._stops):
            self._stops = left
            # Where that fails it is told once more after a restart, which does no harm.
            await self._try_to_save()
            self._tell()

    async def run(self) -> None:
        """Write down what remains from time to time, for ever."""
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
            # What isn't on disk isn't promised; what was there still is, unless this ends it, or comes sooner.
            if self._held.get(held.app_id) == held and not _comes_sooner(held, old):
                self._held.pop(held.app_id)
                if old is not None:
                    self._held[held.app_id] = old
            raise
        self._tell()

    async def _save(self) -> None:
        async with self._writing:
            now = self.boot_clock()
            # Numbers of what runs no more are kept for a while: an older deadline may still be on its way.
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
            # Off for so long, as far as the clock on the wall can be believed; the boot clock began anew.
            off = max(self._wall_clock() - content["wallClock"], 0.0)
            passed = content["bootClock"] + off - self.boot_clock()
        for each in content["held"]:
            project = Project(**each["project"]) if each["project"] else None
            held = StoredDeadline(**{**each, "project": project})
            self._held[held.app_id] = replace(held, due=held.due - passed, changed=held.changed - passed)
        self._stops = [Stop(**each) for each in content["stops"]]

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _comes_sooner(held: StoredDeadline, old: StoredDeadline | None) -> bool:
    if old is None or held.project != old.project:
        return False
    return not held.run_id or (held.run_id == old.run_id and held.due <= old.due)
