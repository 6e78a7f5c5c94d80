"""The stream of observations for one controller: a snapshot, then changes. Always the latest, never a backlog."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import settled_states
from moorage_common.docker.states import ContainerState, Project

from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.deadlines.deadlines import Deadlines, DirectoryDeadlines
from moorage_agent.deadlines.state_disk import StateDisk
from moorage_agent.docker.engine import Engine
from moorage_agent.docker.observer import Observer, boot_nanoseconds
from moorage_agent.errors import RefusalError

_HEARTBEAT_SECONDS = 10.0
_ASK_SECONDS = 3.0
"""Shorter than the caller's own limit, so that the caller gets an answer even from a hung Engine."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The observed state of an app; `looked_at` is when the query began, in nanoseconds of the boot clock."""

    identity: AppIdentity
    containers: Sequence[ContainerState]
    looked_at: int
    known: DirectoryDeadlines = field(default_factory=DirectoryDeadlines)
    project: Project | None = None


@dataclass(frozen=True, slots=True)
class HostState:
    """The host's facts. `uptime` is seconds; `disk_problem` one sentence if the agent's disk is full, or nearly."""

    engine_problem: str
    running_containers: int
    uptime: int
    engine_version: str
    disk_problem: str = ""
    keeps_deadlines: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first item of a watch."""

    host: HostState
    apps: Sequence[Observation]


class Heartbeat:
    """Nothing changed; the watch is alive."""


WatchItem = Snapshot | Observation | HostState | Heartbeat


class Watcher:
    """Serves watches from one observer."""

    def __init__(
        self, observer: Observer, engine: Engine, identities: Identities, deadlines: Deadlines, disk: StateDisk
    ) -> None:
        self._disk = disk
        self._deadlines = deadlines
        self._observer = observer
        self._engine = engine
        self._identities = identities

    def host(self) -> HostState:
        """Return the last known facts of the host."""
        facts = self._observer.facts
        return HostState(
            engine_problem=self._observer.problem,
            running_containers=facts.running_containers if facts else 0,
            uptime=int(float(Path("/proc/uptime").read_text().split()[0])),
            engine_version=facts.version if facts else "",
            disk_problem=self._disk.problem,
            keeps_deadlines=self._disk.keeps,
        )

    async def host_now(self) -> HostState:
        """Return the host's facts, with an answer from the Engine made now."""
        known = self.host()
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                facts = await asyncio.to_thread(self._engine.facts)
        except RefusalError as error:
            return replace(known, engine_problem=str(error), running_containers=0)
        except TimeoutError:
            sentence = f"The Docker Engine didn't answer within {_ASK_SECONDS:.0f} seconds: see on the host how it is."
            return replace(known, engine_problem=sentence, running_containers=0)
        return replace(
            known, engine_problem="", running_containers=facts.running_containers, engine_version=facts.version
        )

    async def observe(self, identity: AppIdentity) -> Observation:
        """Inspect an app now. Raises EngineUnreachableError."""
        began = boot_nanoseconds()
        found = await asyncio.to_thread(self._engine.containers, identity.owns)
        facts = await asyncio.to_thread(self._engine.facts)
        known = self._deadlines.of(identity.cd_path)
        states, project = settled_states(found.values(), facts.time), identity.seen_as(found.values())
        return Observation(identity, states, began, known, project)

    @property
    def boot_id(self) -> str:
        """The boot that `looked_at` counts from."""
        return self._observer.boot_id

    async def watch(self, apps: Sequence[WatchedApp]) -> AsyncIterator[WatchItem]:
        """Yield a snapshot, then changes, with a heartbeat if there are none."""
        stirred = asyncio.Event()
        sources = (self._observer, self._deadlines, self._disk, self._identities)
        stop_listening = [source.listen(stirred.set) for source in sources]
        try:
            await self._observer.asked.wait()
            sent = self._observations(await self._identities.current(apps))
            sent_host = self.host()
            yield Snapshot(sent_host, list(sent.values()))
            said = _now()
            while True:
                # The heartbeat is due by the last item sent, not the last notification: a busy host always has some.
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(said + _HEARTBEAT_SECONDS):
                        await stirred.wait()
                stirred.clear()
                identities = await self._identities.current(apps)
                observations, host = self._observations(identities), self.host()
                for item in _changes(observations, sent, host, sent_host):
                    yield item
                    said = _now()
                sent, sent_host = observations, host
                if _now() - said >= _HEARTBEAT_SECONDS:
                    yield Heartbeat()
                    said = _now()
        finally:
            for stop in stop_listening:
                stop()

    def _observations(self, identities: Sequence[AppIdentity]) -> dict[str, Observation]:
        """Return the observation of each app; none while the Engine doesn't answer: unknown is not stopped."""
        facts, looked_at = self._observer.facts, self._observer.looked_at
        if facts is None:
            return {}
        observations = {}
        for identity in identities:
            owned = [c for c in self._observer.containers.values() if identity.owns(c)]
            known = self._deadlines.of(identity.cd_path)
            states = settled_states(owned, facts.time)
            project = identity.seen_as(owned)
            observations[identity.cd_path] = Observation(identity, states, looked_at, known, project)
        return observations


def _changes(
    now: Mapping[str, Observation], sent: Mapping[str, Observation], host: HostState, sent_host: HostState
) -> Iterator[WatchItem]:
    """Yield the differences. After an Engine outage nothing counts as sent: the controller discarded it."""
    for cd_path, observation in now.items():
        before = sent.get(cd_path)
        if before is None or observation != replace(before, looked_at=observation.looked_at):
            yield observation
    if replace(host, uptime=sent_host.uptime) != sent_host:
        yield host


def _now() -> float:
    return asyncio.get_running_loop().time()
