"""FIFO queue of operations, with limits on concurrent operations per host and in total."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from moorage_common.docker.states import OperationKind

from moorage_controller.store.tables.operations import Operation


class FifoLimiter:
    """FIFO limiter. Recovered operations bypass it but still occupy a slot."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the next caller has to wait."""
        return self._inside >= self._limit

    @asynccontextmanager
    async def slot(self, *, at_once: bool) -> AsyncIterator[None]:
        """Acquire a slot, without waiting if `at_once`; release it at the end."""
        if at_once or not self.is_full:
            self._inside += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                # The slot was granted at the moment of the cancellation: pass it on.
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
    """Result of queueing: `late` after a wait; `cancelled_by` names the canceller if it was cancelled in the queue."""

    late: bool = False
    cancelled_by: str = ""


class Queue:
    """Limiters of all hosts. Stops have limiters of their own, so that hanging starts never delay an auto-stop."""

    def __init__(self, *, on_a_host: int, in_all: int) -> None:
        self._on_a_host = on_a_host
        self._in_all = FifoLimiter(in_all)
        self._hosts: dict[tuple[UUID | None, bool], FifoLimiter] = {}
        self._waiting: dict[UUID, asyncio.Future[str]] = {}

    def cancel(self, operation_id: UUID, by: str) -> bool:
        """Cancel a queued operation; return False if it isn't queued or is cancelled already."""
        waiting = self._waiting.get(operation_id)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(by)
        return True

    async def admit(self, operation: Operation, stack: AsyncExitStack) -> Admission:
        """Wait until the operation may begin or is cancelled; `stack` releases its slots. A running one never waits."""
        stops, at_work = operation.kind == OperationKind.DOWN, operation.state != "queued"
        gates = [self._hosts.setdefault((operation.server_id, stops), FifoLimiter(self._on_a_host))]
        if not stops:
            # Stops have no total limit: many slow stops would delay the auto-stop on all other hosts.
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
