"""Observes this host's containers without gaps.

A session reads the Engine's time, opens the stream of events since then, and only then inspects all containers:
changes in between are in the stream. An event only says which container to inspect again, and each refresh asks for
the states of all. Every reconnect begins with a full inspection.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog
from moorage_common.docker.containers import Container

from moorage_agent.docker.engine import Engine, EngineFacts, EventStream
from moorage_agent.errors import EngineUnreachableError
from moorage_agent.listeners import Listeners

T = TypeVar("T")

log = structlog.get_logger(__name__)

_COALESCE_SECONDS = 0.05
_PING_SECONDS = 10.0
_EVERYTHING_NANOSECONDS = 600 * 10**9
"""Interval of full inspections, in case an Engine missed an event."""
_FIRST_RETRY, _LAST_RETRY = 0.2, 5.0
_STUCK_SECONDS = 30.0
_CLOSE_SECONDS = 5.0


class Observer(Listeners):
    """Follows the Engine while `run` runs; others read its state and are notified of changes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self.containers: Mapping[str, Container] = {}
        self.looked_at = 0
        """Nanoseconds of the boot clock at which the query behind `containers` began."""
        self._all_looked_at = 0
        self.facts: EngineFacts | None = None
        self.problem = "The Docker Engine was not asked yet."
        self.asked = asyncio.Event()
        """Set after the first query of the Engine, answered or failed."""
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def forget(self) -> None:
        """Inspect everything again soon: a container was assigned to the wrong app. Thread-safe."""
        self._all_looked_at = 0

    async def run(self) -> None:
        """Follow the Engine until cancelled."""
        retry = _FIRST_RETRY
        while True:
            began = time.monotonic()
            try:
                await self._session()
            except EngineUnreachableError as error:
                if self.facts is not None or self.problem != str(error):
                    log.warning("engine_lost", problem=str(error))
                self._lost(str(error))
            except Exception:
                # One bad event must not end the watch; but the known state is discarded.
                log.exception("observer_failed")
                self._lost("The agent couldn't make sense of what the Docker Engine said: see its log on the host.")
            await asyncio.to_thread(self._engine.close)
            retry = _FIRST_RETRY if time.monotonic() - began > _LAST_RETRY else min(retry * 2, _LAST_RETRY)
            await asyncio.sleep(retry)

    async def _session(self) -> None:
        """Run one connection to the Engine, from the first inspection to its end, which is always an error."""
        stream = await _within(_STUCK_SECONDS, self._open())
        changed_ids: set[str] = set()
        changed = asyncio.Event()
        ended = asyncio.ensure_future(_pump(stream, changed_ids, changed))
        try:
            await _within(_STUCK_SECONDS, self._look_at_all())
            while not ended.done():
                if boot_nanoseconds() - self._all_looked_at > _EVERYTHING_NANOSECONDS:
                    await _within(_STUCK_SECONDS, self._look_at_all())
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_SECONDS):
                        await changed.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
                changed.clear()
                await _within(_STUCK_SECONDS, self._refresh(changed_ids))
        finally:
            closing = asyncio.ensure_future(asyncio.to_thread(stream.close))
            # A thread that can't be stopped must not block the next session.
            _, left = await asyncio.wait({closing, ended}, timeout=_CLOSE_SECONDS)
            if left:
                log.warning("engine_events_not_closed")
        raise EngineUnreachableError("The Docker Engine closed the stream of its events: see on the host that it runs.")

    async def _open(self) -> EventStream:
        facts = await asyncio.to_thread(self._engine.facts)
        return await asyncio.to_thread(self._engine.events, facts.time)

    async def _look_at_all(self) -> None:
        began = self._all_looked_at = boot_nanoseconds()
        containers = await asyncio.to_thread(self._engine.containers)
        self._publish(containers, began, await asyncio.to_thread(self._engine.facts))

    async def _refresh(self, changed_ids: set[str]) -> None:
        """Inspect the containers named by events, and those whose state differs: an event may come after this refresh.

        So `looked_at` holds for all: the result has every change of state, start and removal before that time.
        """
        ids, began = set(changed_ids), boot_nanoseconds()
        changed_ids.clear()
        states = await asyncio.to_thread(self._engine.states)
        containers = {
            container_id: known
            for container_id, known in self.containers.items()
            if container_id not in ids and states.get(container_id) == known.state.state
        }
        for container_id in states.keys() - containers.keys():
            found = await asyncio.to_thread(self._engine.container, container_id)
            if found is not None:
                containers[container_id] = found
        self._publish(containers, began, await asyncio.to_thread(self._engine.facts))

    def _publish(self, containers: Mapping[str, Container], looked_at: int, facts: EngineFacts) -> None:
        self.containers, self.looked_at, self.facts, self.problem = containers, looked_at, facts, ""
        self._notify_listeners()

    def _lost(self, problem: str) -> None:
        self.facts, self.problem = None, problem
        self._notify_listeners()

    def _notify_listeners(self) -> None:
        self.asked.set()
        super()._notify_listeners()


def boot_nanoseconds() -> int:
    """Return nanoseconds since boot, suspended time included: a restart of the agent doesn't reset this clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _within(seconds: float, look: Coroutine[Any, Any, T]) -> T:
    """Await a query with a limit that fits any number of containers. Raises EngineUnreachableError past it."""
    try:
        async with asyncio.timeout(seconds):
            return await look
    except TimeoutError:
        raise EngineUnreachableError(
            f"A look at the Docker Engine didn't end within {seconds:.0f} seconds: see on the host how it is."
        ) from None


async def _pump(stream: EventStream, changed_ids: set[str], changed: asyncio.Event) -> None:
    """Read the blocking stream in a separate thread; returns when it ends or fails."""
    loop = asyncio.get_running_loop()

    def stir(container_id: str | None) -> None:
        if container_id is not None:
            changed_ids.add(container_id)
        changed.set()

    def read() -> None:
        # The stream ends with any exception of the connection under it.
        with suppress(Exception):
            for event in stream:
                loop.call_soon_threadsafe(stir, event["Actor"]["ID"])
        loop.call_soon_threadsafe(stir, None)

    await asyncio.to_thread(read)
