"""What changes, told to whoever listens: each app, server and operation as it is once it has changed.

The numbers of the changes are the database's, so a listener who was away goes on where he was, with any controller.
The newest are kept in memory, once for all listeners, up to a number and a size; one who lags behind reads the
database, where what changed many times meanwhile is one row. So a listener who is slow costs nothing, and none holds up
another. What is read at once is bounded in bytes too: a listener holds no more than that.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import changes as store
from moorage_controller.store.tables import operations as operation_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import AppView
from moorage_controller.store.tables.changes import Change, Kind
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.servers import Server

_MOST_KEPT = 2000
_MOST_BYTES = 16 * 1024 * 1024
"""Of the texts that are kept in memory."""
_BATCH_SIZE = 25
_MOST_READ = 1024 * 1024
"""Bytes after which no more is read for one listener until he has those."""
_POLL_SECONDS = 0.2
"""How often to look for what other controllers have written; one's own writes are told at once."""

Resource = AppView | Server | Operation
Show = Callable[[UUID, Resource | None], str]
"""Makes the text of an event; the resource is None where it is gone."""


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A change: its number, what changed, and the text of its event."""

    number: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The first that a listener is told: from which number on he hears of changes, and whether he missed none."""

    number: int
    resumed: bool


class Feed:
    """Follows the changes for as long as `run` runs."""

    def __init__(self, database: Database, show: Show) -> None:
        self._database = database
        self._show = show
        self._stirred = asyncio.Event()
        self._news: deque[ChangeEvent] = deque()
        self._size = 0
        self._floor = 0
        """What comes after this number is in memory."""
        self._last = 0
        self._arrived = asyncio.Event()
        self.listeners = 0
        """How many listen just now."""
        database.written.connect(lambda _: self._stirred.set())

    async def open(self) -> None:
        """Begin with what is there; call it before `run`, and before anybody listens."""
        async with self._database.read() as connection:
            _, self._last = await store.span(connection)
        self._floor = self._last

    async def run(self) -> None:
        """Look after every write, for ever."""
        while True:
            while found := await self._read(self._last):
                self._keep(found)
            # No decision hangs on this, so it is no matter of the clock.
            with suppress(TimeoutError):
                # Not wait_for: Python 3.11's may lose a cancel that comes in the moment of the result.
                async with asyncio.timeout(_POLL_SECONDS if self._database.is_shared else None):
                    await self._stirred.wait()
            self._stirred.clear()

    async def listen(self, after: int | None) -> AsyncGenerator[Sequence[StreamOpened | ChangeEvent], None]:
        """Yield first whether nothing was missed since `after` (None: no claim), then what changes, in order.

        Raises DatabaseUnavailableError where a listener who lags behind needs the database.
        """
        ready = await self._begin(after)
        self.listeners += 1
        try:
            yield [ready]
            async for news in self._follow(ready.number):
                yield news
        finally:
            self.listeners -= 1

    async def _follow(self, cursor: int) -> AsyncIterator[Sequence[ChangeEvent]]:
        while True:
            arrived = self._arrived
            news = self._after(cursor) if cursor >= self._floor else await self._read(cursor)
            if news:
                yield news
                cursor = news[-1].number
            elif cursor < self._floor:
                # All of it changed again since: that is in memory.
                cursor = self._floor
            else:
                await arrived.wait()

    async def _begin(self, after: int | None) -> StreamOpened:
        if after is None:
            return StreamOpened(self._last, resumed=False)
        async with self._database.read() as connection:
            first, last = await store.span(connection)
        # Numbers of another database, of before a restore, or too old to be remembered.
        resumed = first <= after <= last
        return StreamOpened(after if resumed else self._last, resumed)

    def _keep(self, found: Sequence[ChangeEvent]) -> None:
        self._news.extend(found)
        self._size += sum(_size(news) for news in found)
        self._last = found[-1].number
        while len(self._news) > _MOST_KEPT or self._size > _MOST_BYTES:
            oldest = self._news.popleft()
            self._size -= _size(oldest)
            self._floor = oldest.number
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def _after(self, number: int) -> Sequence[ChangeEvent]:
        found: list[ChangeEvent] = []
        for news in reversed(self._news):
            if news.number <= number:
                break
            found.append(news)
        return found[::-1]

    async def _read(self, number: int) -> Sequence[ChangeEvent]:
        found: list[ChangeEvent] = []
        size = 0
        async with self._database.read() as connection:
            changes = await store.after(connection, number)
            for begin in range(0, len(changes), _BATCH_SIZE):
                some = changes[begin : begin + _BATCH_SIZE]
                resources = await _load(connection, some)
                found += [
                    ChangeEvent(c.number, c.kind, self._show(c.resource_id, resources.get(c.resource_id))) for c in some
                ]
                size += sum(_size(news) for news in found[begin:])
                if size > _MOST_READ:
                    break
        return found


def _size(news: ChangeEvent) -> int:
    """Return the bytes that a text takes: up to four a character."""
    return sys.getsizeof(news.text)


async def _load(connection: AsyncConnection, changes: Sequence[Change]) -> Mapping[UUID, Resource]:
    ids = {kind: [c.resource_id for c in changes if c.kind is kind] for kind in Kind}
    app_ids = {*ids[Kind.APP], *ids[Kind.STOPPING_SOON]}
    found: dict[UUID, Resource] = {view.app.id: view for view in await app_store.views(connection, app_ids)}
    found |= {server.id: server for server in await server_store.some(connection, ids[Kind.SERVER])}
    found |= {operation.id: operation for operation in await operation_store.some(connection, ids[Kind.OPERATION])}
    return found
