"""How many operations may be at work at once, on each host and in all; who comes first is served first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID


class Gate:
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
    async def passed(self, *, at_once: bool) -> AsyncIterator[None]:
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


class Slots:
    """The gates of all hosts. Stops have gates of their own: starts that hang never hold up an auto-stop."""

    def __init__(self, *, on_a_host: int, in_all: int) -> None:
        self._on_a_host = on_a_host
        self._in_all = {stops: Gate(in_all) for stops in (False, True)}
        self._hosts: dict[tuple[UUID, bool], Gate] = {}

    def is_free(self, server_id: UUID, *, stops: bool) -> bool:
        """Whether an operation could begin right now."""
        return not (self._gate(server_id, stops=stops).is_full or self._in_all[stops].is_full)

    @asynccontextmanager
    async def turn(self, server_id: UUID, *, stops: bool, at_once: bool) -> AsyncIterator[None]:
        """Wait until an operation may begin on a host, and count it until the end; `at_once`: it is at work already."""
        async with (
            self._gate(server_id, stops=stops).passed(at_once=at_once),
            self._in_all[stops].passed(at_once=at_once),
        ):
            yield

    def _gate(self, server_id: UUID, *, stops: bool) -> Gate:
        return self._hosts.setdefault((server_id, stops), Gate(self._on_a_host))
