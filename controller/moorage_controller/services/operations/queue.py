"""The queue of operations: how many may be at work at once, on each host and in all; who comes first goes first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from moorage_common.docker.states import OperationKind

from moorage_controller.store.tables.operations import Operation


class FifoLimiter:
    """Lets so many in at once. What is at work already counts, even where that is more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the next one has to wait."""
        return self._inside >= self._limit

    @asynccontextmanager
    async def slot(self, *, at_once: bool) -> AsyncIterator[None]:
        """Wait for a turn, unless it is to be `at_once`; give it back at the end."""
        if at_once or not self.is_full:
            self._inside += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                # Given a turn in the very moment in which it was called off: the next one has it.
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        while self._waiting and not self.is_full:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)


@dataclass(frozen=True, slots=True)
class Admission:
    """How an operation came to its turn: after a wait, or not at all since it was cancelled meanwhile, and by whom."""

    late: bool = False
    cancelled_by: str = ""


class Queue:
    """The gates of all hosts. Stops have gates of their own: starts that hang never hold up an auto-stop."""

    def __init__(self, *, on_a_host: int, in_all: int) -> None:
        self._on_a_host = on_a_host
        self._in_all = FifoLimiter(in_all)
        self._hosts: dict[tuple[UUID | None, bool], FifoLimiter] = {}
        self._waiting: dict[UUID, asyncio.Future[str]] = {}

    def cancel(self, operation_id: UUID, by: str) -> bool:
        """Take an operation out of the queue; False where it isn't there, or was called off already."""
        waiting = self._waiting.get(operation_id)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(by)
        return True

    async def admit(self, operation: Operation, stack: AsyncExitStack) -> Admission:
        """Wait until it may begin, or is cancelled; `stack` gives its turn back. What is at work already counts."""
        stops, at_work = operation.kind == OperationKind.DOWN, operation.state != "queued"
        gates = [self._hosts.setdefault((operation.server_id, stops), FifoLimiter(self._on_a_host))]
        if not stops:
            # Stops wait for nothing but their host: many slow ones would hold up the auto-stop of all others.
            gates.append(self._in_all)
        if at_work or not any(gate.is_full for gate in gates):
            await _acquire_all(gates, stack, at_once=at_work)
            return Admission()
        cancelled = self._waiting[operation.id] = asyncio.get_running_loop().create_future()
        passing = asyncio.create_task(_acquire_all(gates, stack, at_once=False))
        try:
            either: list[asyncio.Future[None] | asyncio.Future[str]] = [passing, cancelled]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[operation.id]
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
        return Admission(late=True, cancelled_by=cancelled.result() if cancelled.done() else "")


async def _acquire_all(gates: list[FifoLimiter], stack: AsyncExitStack, *, at_once: bool) -> None:
    for gate in gates:
        await stack.enter_async_context(gate.slot(at_once=at_once))
