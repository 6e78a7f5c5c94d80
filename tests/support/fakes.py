"""Fakes that behave like the real thing: a clock that tests move, and transports to hosts in memory.

The fake transport passes the same contract tests as an agent on a real Engine (tests/contract).
"""

import asyncio
import gc
import heapq
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiosqlite.core
import asyncpg.connect_utils
import asyncpg.connection
import asyncpg.prepared_stmt
import asyncpg.transaction
from fake_host import FakeHost
from fake_host_parts import FakeApp, FakeRun, Plan, Refusal
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    HostAddress,
    HostApp,
    HostInfo,
    HostProject,
    HostRefusedError,
    HostTransport,
    Order,
    Output,
    WatchItem,
)

__all__ = [
    "EPOCH",
    "FakeApp",
    "FakeClock",
    "FakeHost",
    "FakeHosts",
    "FakeRun",
    "FakeTransport",
    "Plan",
    "Refusal",
    "settle",
]

EPOCH = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
_SECOND = 1_000_000
_QUIET_ROUNDS = 30
_MOST_ROUNDS = 100_000
_OUTSIDE = frozenset(
    {
        aiosqlite.core.__file__,
        asyncio.threads.__file__,
        asyncpg.connect_utils.__file__,
        asyncpg.connection.__file__,
        asyncpg.prepared_stmt.__file__,
        asyncpg.transaction.__file__,
    }
)
"""Whose coroutines wait for a thread, or for PostgreSQL: what they wait for comes by itself."""


async def settle() -> None:
    """Return once every task waits for the test or the clock; nothing is timed here."""
    quiet = 0
    for _ in range(_MOST_ROUNDS):
        working = {future for task in asyncio.all_tasks() if (future := _future_from_outside(task)) is not None}
        if working:
            # Waits for the future itself: polling would only slow down its thread.
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            quiet = 0
        await asyncio.sleep(0)
        quiet += 1
        if quiet == _QUIET_ROUNDS:
            return
    raise AssertionError("the tasks never came to rest")


def _future_from_outside(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """Return a task's awaited future where a thread or PostgreSQL completes it."""
    inner: Any = task.get_coro()
    outside = False
    while inner is not None:
        code = getattr(inner, "cr_code", None) or getattr(inner, "ag_code", None)
        if code is not None:
            outside = outside or code.co_filename in _OUTSIDE
            inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
        elif isinstance(inner, asyncio.Future):
            return inner if outside and not inner.done() else None
        else:
            # Wrappers (of __await__, of an async generator's next step) don't say what they wrap; the collector knows.
            inner = next((w for w in gc.get_referents(inner) if _is_awaited(w)), None)
    return None


def _is_awaited(thing: object) -> bool:
    # By attributes: the driver's own coroutines, and the iterator of a future, have compiled types.
    return isinstance(thing, Coroutine | Generator | AsyncGenerator | asyncio.Future)


class FakeClock:
    """A clock that only tests move. It counts whole microseconds, to avoid rounding errors."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._start = start
        self._passed = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return self._start + timedelta(microseconds=self._passed)

    def monotonic(self) -> float:
        """Return seconds from an arbitrary point."""
        return 1000 + self._passed / _SECOND

    def awake(self) -> float:
        """Return the same: it is never suspended."""
        return self.monotonic()

    def jump(self, seconds: float) -> None:
        """Set the wall time, as NTP does; no time passes."""
        self._start += timedelta(seconds=seconds)

    async def sleep(self, seconds: float) -> None:
        """Sleep until the clock has been moved by that much."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._passed + max(round(seconds * _SECOND), 1), self._count, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move wall and monotonic time in one step, and wake the due sleepers, in order."""
        self._move_to(self._passed + round(seconds * _SECOND))

    async def run(self, seconds: float) -> None:
        """Let time pass in small steps: each sleeper wakes at its own time, and acts before the next."""
        end = self._passed + round(seconds * _SECOND)
        await settle()
        while (due := self._next()) is not None and due <= end:
            self._move_to(due)
            await settle()
        self._move_to(end)
        await settle()

    def _move_to(self, moment: int) -> None:
        self._passed = moment
        while self._sleepers and self._sleepers[0][0] <= moment:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def _next(self) -> int | None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None


class FakeTransport:
    """The transport to a fake host; it fails like an agent's."""

    name = "agent"

    def __init__(self, host: FakeHost, clock: FakeClock) -> None:
        self._host = host
        self._clock = clock

    async def connect(self) -> None:
        """Reach the host. Raises HostUnreachableError."""
        await self.info()

    async def info(self) -> HostInfo:
        """Ask the host's facts now. Raises HostUnreachableError, after five seconds where nothing answers."""
        if self._host.silent:
            await self._clock.sleep(5)
            raise HostUnreachableError("The host can't be reached: no answer within 5 seconds")
        if not self._host.reachable:
            raise HostUnreachableError("The host can't be reached: connection refused")
        return self._host.host_info()

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        await self._arrive()
        lost, self._host.lose_start = self._host.lose_start, ""
        if lost == "before":
            raise ContactLostError("The connection broke.")
        await self._host.launch(order)
        if lost == "after":
            raise ContactLostError("The connection broke.")

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end."""
        await self._arrive()
        async for item in self._host.read(operation_id, after):
            yield item

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or bury it."""
        await self._arrive()
        return self._host.stop(operation_id, by)

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change."""
        await self._arrive()
        async for item in self._host.watched(apps):
            yield item

    async def observe(self, app: HostApp) -> AppObservation:
        """Look at an app now. Raises HostUnreachableError, HostRefusedError."""
        await self._ask()
        return self._host.observation(app.cd_path)

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects there are. Raises HostUnreachableError, HostRefusedError."""
        await self._ask()
        return self._host.projects()

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of the log lines of an app's containers."""
        await self._arrive()
        async for batch in self._host.read_logs(app.cd_path, wanted):
            yield batch

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Keep a deadline. Raises HostUnreachableError."""
        await self.info()
        self._host.keep(app.cd_path, deadline)
        then, self._host.on_deadline = self._host.on_deadline, None
        if then is not None:
            await then()

    async def _ask(self) -> None:
        await self.info()
        if self._host.engine_problem:
            raise HostRefusedError("engine_unreachable", self._host.engine_problem)

    async def _arrive(self) -> None:
        if self._host.silent:
            await self._clock.sleep(30)
        if self._host.silent or not self._host.reachable:
            raise ContactLostError("The connection broke.")


HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5nXjhbnyb0aHWVCsTXF2Zq0hvI2uT7wBQh0SZ6BqCh"


class FakeHosts:
    """Finds fake hosts by their endpoint."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.hosts: dict[str, FakeHost] = {}

    def add(self, endpoint: str) -> FakeHost:
        """Return a new host at an endpoint."""
        self.hosts[endpoint] = FakeHost()
        return self.hosts[endpoint]

    def transport(self, server: HostAddress) -> HostTransport:
        """Return the transport to a server's host. Raises HostUnreachableError where there is none."""
        endpoint = server.api_endpoint
        if not endpoint or not server.agent_name:
            raise HostUnreachableError("This server has no agent yet.", "no_agent")
        if endpoint not in self.hosts:
            raise HostUnreachableError(f"The agent at {endpoint} can't be reached: no route to host")
        return FakeTransport(self.hosts[endpoint], self._clock)

    async def host_key(self, server: HostAddress) -> str:
        """Return a key; the same for all."""
        del server
        return HOST_KEY

    async def close(self) -> None:
        """End everything that runs on the hosts."""
        for host in self.hosts.values():
            await host.close()
