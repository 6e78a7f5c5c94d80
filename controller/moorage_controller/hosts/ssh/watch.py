"""Gapless observation of a host without an agent, by the Engine's events over the one connection.

A watch reads the Engine's time, opens the event stream from that time on, and then reads all containers. Changes in
between are in the stream. An event only names a container to read again; each read also fetches the states of all.
After a reconnect, all containers are read again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from moorage_common.clock import jittered
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import Container, settled_states
from moorage_common.docker.engine_http import EngineClosedError, EngineProblemError
from moorage_common.untrusted import LIMITS

from moorage_controller.hosts import cleaning
from moorage_controller.hosts.ssh.compose import HostCompose, pinned
from moorage_controller.hosts.ssh.engine import EngineFacts
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.transport import AppObservation, ContactLostError, HostInfo, Snapshot, WatchItem

_COALESCE_SECONDS = 0.05
_PING_SECONDS = 10.0
_IDENTITIES_SECONDS = 15.0
"""How long a change of a compose file, or of a link in its path, may go unnoticed; a start always checks again."""
_PATIENCE_SECONDS = 1.0
_FIRST_RETRY, _LAST_RETRY = 0.2, 5.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
"""Boot id of observations over SSH: their times are from this controller's clock, in the order of its requests."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All containers of Compose projects on a host at one moment."""

    containers: Mapping[str, Container]
    looked_at: int
    facts: EngineFacts


class Watch:
    """One watch of one host's apps over one connection."""

    def __init__(self, link: HostSession, apps: "Apps") -> None:
        self._link = link
        self._apps = apps
        self._identities: Sequence[AppIdentity] = ()
        self._identified = 0.0
        self._disk_problem = ""
        self._identifying: asyncio.Task[Sequence[AppIdentity]] | None = None
        self._dirty: set[str] = set()
        self._stirred = asyncio.Event()

    async def items(self) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then changes. It ends only with ContactLostError or HostRefusedError."""
        told: dict[str, AppObservation] = {}
        host: HostInfo | None = None
        retry = _FIRST_RETRY
        while True:
            try:
                async with aclosing(self._poll_over_channels()) as looks:
                    async for seen in looks:
                        retry = _FIRST_RETRY
                        now = {i.cd_path: observation(i, seen) for i in self._identities}
                        facts = host_info(self._link, self._apps.compose, seen.facts, disk_problem=self._disk_problem)
                        if host is None:
                            yield Snapshot(facts, list(now.values()))
                        else:
                            for item in _changes(now, told):
                                yield item
                            if _differ(facts, host):
                                yield facts
                        told, host = now, facts
            except EngineProblemError as error:
                lost = host_info(self._link, self._apps.compose, None, str(error), self._disk_problem)
                if host is None:
                    yield Snapshot(lost)
                elif _differ(lost, host):
                    yield lost
                # The watcher discards all observations without the Engine, so all are sent again later.
                told, host = {}, lost
                if self._link.needs_reprobe:
                    # Only a new login notices new permissions or a new Docker installation.
                    raise ContactLostError(str(error)) from None
            await asyncio.sleep(jittered(retry))
            retry = min(retry * 2, _LAST_RETRY)

    async def _poll_over_channels(self) -> AsyncGenerator[Seen, None]:
        """Yield the items of `_looks`, with a new channel after each close: the SSH server may close an idle channel.

        The first request over the next channel shows whether the Engine closed the last one.
        """
        while True:
            seen_well = False
            try:
                async with aclosing(self._looks()) as looks:
                    async for seen in looks:
                        seen_well = True
                        yield seen
            except EngineClosedError:
                if not seen_well:
                    raise
            await asyncio.sleep(jittered(_FIRST_RETRY))

    async def _looks(self) -> AsyncGenerator[Seen, None]:
        """Yield all containers: first, after events, and per ping interval.

        Ends when the Engine or the connection is lost.
        """
        engine = self._link.engine
        events = engine.events((await engine.facts()).time)
        pump: asyncio.Task[None] | None = None
        try:
            await anext(events)
            pump = asyncio.create_task(self._pump(events))
            began = boot_nanoseconds()
            seen = Seen(await engine.containers(), began, await engine.facts())
            await self._identify()
            yield seen
            while not pump.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_SECONDS):
                        await self._stirred.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
                self._stirred.clear()
                seen = await self._look_again(seen)
                await self._identify()
                yield seen
            await pump
        finally:
            left = [task for task in (pump, self._identifying) if task is not None]
            self._identifying = None
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await events.aclose()

    async def _pump(self, events: AsyncGenerator[str, None]) -> None:
        try:
            async for container_id in events:
                if len(self._dirty) <= LIMITS.containers:  # beyond the limit, all count as dirty
                    self._dirty.add(container_id)
                self._stirred.set()
        finally:
            self._stirred.set()

    async def _look_again(self, before: Seen) -> Seen:
        """Read the containers with events and those whose state differs: an event may come after this read."""
        engine, ids, began = self._link.engine, set(self._dirty), boot_nanoseconds()
        self._dirty.clear()
        all_dirty = len(ids) > LIMITS.containers
        states = await engine.states()
        containers = {
            container_id: known
            for container_id, known in before.containers.items()
            if container_id not in ids and not all_dirty and states.get(container_id) == known.state.state
        }
        containers |= await engine.inspected(list(states.keys() - containers.keys()))
        return Seen(containers, began, await engine.facts())

    async def _identify(self) -> None:
        """Refresh the apps' identities if due; known ones wait a second at most for that."""
        if self._identifying is None:
            if self._identified and time.monotonic() - self._identified <= _IDENTITIES_SECONDS:
                return
            self._disk_problem = await self._link.disk_problem()
            self._identifying = asyncio.create_task(self._apps.identities())
            self._identifying.add_done_callback(lambda _: self._stirred.set())
        done, _ = await asyncio.wait({self._identifying}, timeout=_PATIENCE_SECONDS if self._identified else None)
        if done:
            told, self._identifying = self._identifying, None
            self._identities = await told
            self._identified = time.monotonic()


class Apps:
    """The watched apps, with their current identities."""

    compose: HostCompose | None = None

    async def identities(self) -> Sequence[AppIdentity]:
        """Return the identities in the order of the apps. Raises ContactLostError, HostRefusedError."""
        raise NotImplementedError


def boot_nanoseconds() -> int:
    """Return nanoseconds since this machine's boot, including suspended time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def observe(link: HostSession, identity: AppIdentity) -> AppObservation:
    """Observe one app now. Raises EngineProblemError, ContactLostError."""
    began = boot_nanoseconds()
    containers = await link.engine.containers()
    return observation(identity, Seen(containers, began, await link.engine.facts()))


def observation(identity: AppIdentity, seen: Seen) -> AppObservation:
    """Return an app's observation."""
    owned = [c for c in seen.containers.values() if identity.owns(c)]
    return cleaning.observation(
        AppObservation(
            cd_path=identity.cd_path,
            project=identity.seen_as(owned),
            containers=settled_states(owned, seen.facts.time),
            looked_at=seen.looked_at,
            boot_id=BOOT_ID,
            problem_code=identity.problem_code,
            problem=identity.problem,
            replicas=dict(islice(identity.replicas.items(), LIMITS.services)),
        )
    )


def host_info(
    link: HostSession, compose: HostCompose | None, facts: EngineFacts | None, problem: str = "", disk_problem: str = ""
) -> HostInfo:
    """Return a host's facts; `facts` is None if the Engine doesn't answer, and `problem` then says why."""
    return cleaning.host_info(
        HostInfo(
            engine_reachable=facts is not None,
            engine_problem=problem,
            running_containers=facts.running_containers if facts else 0,
            uptime=link.survey.uptime,
            agent_version="",
            engine_version=facts.version if facts else "",
            compose_version=compose.version if compose else _pinned_version(),
            disk_problem=disk_problem,
        )
    )


def _pinned_version() -> str:
    ours = pinned()
    return ours.version if ours is not None else ""


def _changes(now: Mapping[str, AppObservation], told: Mapping[str, AppObservation]) -> Iterable[AppObservation]:
    for cd_path, seen in now.items():
        before = told.get(cd_path)
        if before is None or replace(seen, looked_at=before.looked_at) != before:
            yield seen


def _differ(one: HostInfo, other: HostInfo) -> bool:
    return replace(one, uptime=other.uptime) != other
