"""What one controller is told: everything at first, then whatever of it changed. Always the latest, never a backlog."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moorage_common.states import ContainerState, Project

from moorage_agent.compose_runner import ComposeRunner
from moorage_agent.engine import Container, Engine
from moorage_agent.errors import RefusalError
from moorage_agent.observer import Observer, boot_nanoseconds
from moorage_agent.projects import AppIdentity

_HEARTBEAT_SECONDS = 10.0
_IDENTIFY_AGAIN_SECONDS = 60.0
"""Compose files change without an event; a start or a stop always asks Compose anew."""


@dataclass(frozen=True, slots=True)
class WatchedApp:
    """An app as the controller names it."""

    cd_path: str
    last_project: Project | None


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of an app; `looked_at` is when the look began, in nanoseconds of the boot clock."""

    identity: AppIdentity
    containers: Sequence[ContainerState]
    looked_at: int


@dataclass(frozen=True, slots=True)
class HostState:
    """The host's facts. `uptime` is seconds."""

    engine_problem: str
    running_containers: int
    uptime: int
    engine_version: str


@dataclass(frozen=True, slots=True)
class Everything:
    """The first item of a watch."""

    host: HostState
    apps: Sequence[Observation]


class Heartbeat:
    """Nothing changed; the watch lives."""


WatchItem = Everything | Observation | HostState | Heartbeat


class Watcher:
    """Serves watches from one observer."""

    def __init__(self, observer: Observer, engine: Engine, runner: ComposeRunner) -> None:
        self._observer = observer
        self._engine = engine
        self._runner = runner

    def host(self) -> HostState:
        """Return the host's facts as they are known now."""
        facts = self._observer.facts
        return HostState(
            engine_problem=self._observer.problem,
            running_containers=facts.running_containers if facts else 0,
            uptime=int(float(Path("/proc/uptime").read_text().split()[0])),
            engine_version=facts.version if facts else "",
        )

    async def host_now(self) -> HostState:
        """Ask the Engine now."""
        known = self.host()
        try:
            facts = await asyncio.to_thread(self._engine.facts)
        except RefusalError as error:
            return replace(known, engine_problem=str(error), running_containers=0)
        return replace(
            known, engine_problem="", running_containers=facts.running_containers, engine_version=facts.version
        )

    async def look(self, identity: AppIdentity) -> Observation:
        """Look at an app now. Raises EngineUnreachableError."""
        began = boot_nanoseconds()
        found = await asyncio.to_thread(self._engine.containers, identity.owns)
        return Observation(identity, _states(found.values()), began)

    @property
    def boot_id(self) -> str:
        """The boot that `looked_at` counts from."""
        return self._observer.boot_id

    async def watch(self, apps: Sequence[WatchedApp]) -> AsyncIterator[WatchItem]:
        """Yield everything, then changes, with a heartbeat where there are none."""
        stirred = asyncio.Event()
        stop_listening = self._observer.listen(stirred.set)
        try:
            identities = await self._identify(apps)
            identified = asyncio.get_running_loop().time()
            sent = self._observations(identities)
            sent_host = self.host()
            yield Everything(sent_host, list(sent.values()))
            while True:
                try:
                    await asyncio.wait_for(stirred.wait(), _HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield Heartbeat()
                stirred.clear()
                if asyncio.get_running_loop().time() - identified > _IDENTIFY_AGAIN_SECONDS:
                    identities = await self._identify(apps)
                    identified = asyncio.get_running_loop().time()
                now = self._observations(identities)
                for cd_path, observation in now.items():
                    if _differs(observation, sent.get(cd_path)):
                        yield observation
                sent = now or sent
                host = replace(self.host(), uptime=sent_host.uptime)
                if host != sent_host:
                    sent_host = self.host()
                    yield sent_host
        finally:
            stop_listening()

    async def _identify(self, apps: Sequence[WatchedApp]) -> list[AppIdentity]:
        identities = []
        for app in apps:
            try:
                identities.append(await self._runner.identify(app.cd_path, app.last_project))
            except RefusalError as error:
                # Outside the policy nothing of it is shown but the reason.
                identities.append(AppIdentity(app.cd_path, "", None, None, error.code, str(error)))
        return identities

    def _observations(self, identities: Sequence[AppIdentity]) -> dict[str, Observation]:
        """Return what is known of each app; nothing while the Engine doesn't answer: unknown is not stopped."""
        if self._observer.facts is None:
            return {}
        containers, looked_at = self._observer.containers.values(), self._observer.looked_at
        return {
            identity.cd_path: Observation(identity, _states(c for c in containers if identity.owns(c)), looked_at)
            for identity in identities
        }


def _states(containers: Iterable[Container]) -> Sequence[ContainerState]:
    return sorted((c.state for c in containers), key=lambda state: state.name)


def _differs(observation: Observation, sent: Observation | None) -> bool:
    return sent is None or (observation.identity, observation.containers) != (sent.identity, sent.containers)
