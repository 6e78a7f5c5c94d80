"""Change feed: publish the new state of each app, server and operation that changed.

Change numbers come from the database, so a listener that reconnects continues where it was, on any controller. The
newest changes are kept in memory, once for all listeners, up to a count and a size. A listener that lags behind reads
the database, where repeated changes of one resource are one row. So a slow listener costs no memory and delays no
other. Each read is bounded in bytes too, which bounds the memory of a listener.
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
"""Bytes of event texts kept in memory."""
_BATCH_SIZE = 25
_MOST_READ = 1024 * 1024
"""Bytes after which a read for one listener ends, until the listener has taken them."""
_POLL_SECONDS = 0.2
"""Poll interval for changes of other controllers; this controller's own writes are notified immediately."""

Resource = AppView | Server | Operation
Show = Callable[[UUID, Resource | None], str]
"""Renders the text of an event; the resource is None if it was deleted."""


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A change: its number, what changed, and the text of its event."""

    number: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The first item for a listener: the number after which changes follow, and whether none was missed."""

    number: int
    resumed: bool


class Feed:
    """Reads changes while `run` is active, and distributes them to listeners."""

    def __init__(self, database: Database, show: Show) -> None:
        self._database = database
        self._show = show
        self._stirred = asyncio.Event()
        self._news: deque[ChangeEvent] = deque()
        self._size = 0
        self._floor = 0
        """All changes after this number are in memory."""
        self._last = 0
        self._arrived = asyncio.Event()
        self.listeners = 0
        """Current number of listeners."""
        database.written.connect(lambda _: self._stirred.set())

    async def open(self) -> None:
        """Start after the last existing change; call it before `run` and `listen`."""
        async with self._database.read() as connection:
            _, self._last = await store.span(connection)
        self._floor = self._last

    async def run(self) -> None:
        """Read changes after every write, until cancelled."""
        while True:
            while found := await self._read(self._last):
                self._keep(found)
            # No decision depends on this timeout, so it does not use the injected clock.
            with suppress(TimeoutError):
                # Not asyncio.wait_for: in Python 3.11 it may lose a cancellation that coincides with the result.
                async with asyncio.timeout(_POLL_SECONDS if self._database.is_shared else None):
                    await self._stirred.wait()
            self._stirred.clear()

    async def listen(self, after: int | None) -> AsyncGenerator[Sequence[StreamOpened | ChangeEvent], None]:
        """Yield first whether nothing was missed since `after` (None: new listener), then changes in order.

        Raises DatabaseUnavailableError if a listener that lags behind needs the database.
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
                # All those resources changed again since: the newer changes are in memory.
                cursor = self._floor
            else:
                await arrived.wait()

    async def _begin(self, after: int | None) -> StreamOpened:
        if after is None:
            return StreamOpened(self._last, resumed=False)
        async with self._database.read() as connection:
            first, last = await store.span(connection)
        # Not resumed: a number of another database, from before a restore, or already pruned.
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
    """Return the memory size of a text in bytes: up to four per character."""
    return sys.getsizeof(news.text)


async def _load(connection: AsyncConnection, changes: Sequence[Change]) -> Mapping[UUID, Resource]:
    ids = {kind: [c.resource_id for c in changes if c.kind is kind] for kind in Kind}
    app_ids = {*ids[Kind.APP], *ids[Kind.STOPPING_SOON]}
    found: dict[UUID, Resource] = {view.app.id: view for view in await app_store.views(connection, app_ids)}
    found |= {server.id: server for server in await server_store.some(connection, ids[Kind.SERVER])}
    found |= {operation.id: operation for operation in await operation_store.some(connection, ids[Kind.OPERATION])}
    return found
