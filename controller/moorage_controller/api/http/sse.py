"""Server-sent events: a reply that goes on for as long as its caller listens."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from moorage_controller.errors import MoorageError, UnreadableError

log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS = 15.0
_SEND_SECONDS = 30.0
"""How long a reader may take nothing at all until he is dropped; whatever he reads of goes on."""
_POLL_SECONDS = 0.5
"""How often to look for callers who hung up, of all streams at once: the library tells it to nobody."""
_ADMIT_SECONDS = 30.0
"""How long a stream may outlive the token that opened it."""
_CONNECTED_SECONDS = 0.25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `id` is what the reader sends back as Last-Event-ID, `name` the event's type."""

    data: str
    id: str | None = None
    name: str | None = None


Events = AsyncGenerator[Sequence[Event], None]
"""Batches of events. Closed when the caller is gone; what it raises ends the stream, and the caller comes again."""
Admit = Callable[[], Awaitable[object]]
"""Raises a MoorageError once the caller may not listen any more."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The body of a reply that goes on."""

    events: Events
    held: ExitStack
    """What is held for as long as it goes on."""


async def while_connected(request: web.Request, answer: Coroutine[Any, Any, T]) -> T:
    """Return an answer that takes a while; it is given up as soon as the caller hangs up (UnreadableError)."""
    task = asyncio.ensure_future(answer)
    try:
        while not task.done():
            if request.transport is None or request.transport.is_closing():
                raise UnreadableError("caller_gone", "The caller hung up.")
            await asyncio.wait({task}, timeout=_CONNECTED_SECONDS)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Streams:
    """The streams that are open."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[None], web.Request] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def serve(self, request: web.Request, body: Stream, admit: Admit) -> web.StreamResponse:
        """Send events until they end, the caller hangs up or takes nothing, or he may not listen any more."""
        response = EventSourceResponse(send_timeout=_SEND_SECONDS, ping_interval=_HEARTBEAT_SECONDS)
        with body.held:
            sending = asyncio.create_task(
                _Sending(request, response, body.events, admit).run(), name=f"stream {request.path}"
            )
            self._open[sending] = request
            self._look()
            try:
                await asyncio.wait({sending})
            finally:
                del self._open[sending]
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return response

    def _look(self) -> None:
        """End the streams of those who hung up: one that has nothing to send would notice at its next heartbeat."""
        if self._looking is not None:
            self._looking.cancel()
        for sending, request in self._open.items():
            if request.transport is None or request.transport.is_closing():
                sending.cancel()
        self._looking = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._look) if self._open else None

    async def close(self, _application: web.Application) -> None:
        """End all streams: their callers come again, to whoever serves then."""
        for sending in self._open:
            sending.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


class _Sending:
    def __init__(self, request: web.Request, response: EventSourceResponse, events: Events, admit: Admit) -> None:
        self._request = request
        self._response = response
        self._events = events
        self._admit = admit
        self._admitted = time.monotonic()

    async def run(self) -> None:
        try:
            async with aclosing(self._events):
                # Begun before the reply is: what hasn't begun can't be closed, and it may hold something open.
                coming = asyncio.ensure_future(anext(self._events, None))
                try:
                    await self._response.prepare(self._request)
                    async with self._response:
                        await self._send_all(coming)
                finally:
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
        except (ConnectionError, TimeoutError):
            log.info("stream_dropped")
        except MoorageError as error:
            log.info("stream_ended", code=error.code)
        except Exception:
            log.exception("stream_failed")

    async def _send_all(self, coming: "asyncio.Future[Sequence[Event] | None]") -> None:
        gone: asyncio.Future[None] = asyncio.create_task(self._response.wait())
        try:
            while True:
                while not coming.done():
                    either: list[asyncio.Future[Any]] = [coming, gone]
                    await asyncio.wait(either, timeout=_ADMIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        return
                    await self._admit_again()
                batch = coming.result()
                if batch is None:
                    return
                for event in batch:
                    await self._response.send(event.data, id=event.id, event=event.name)
                # Sending what fits into a buffer lets nobody else have a turn.
                await asyncio.sleep(0)
                coming = asyncio.ensure_future(anext(self._events, None))
        finally:
            for task in (coming, gone):
                task.cancel()
            await asyncio.gather(coming, gone, return_exceptions=True)

    async def _admit_again(self) -> None:
        if time.monotonic() - self._admitted >= _ADMIT_SECONDS:
            await self._admit()
            self._admitted = time.monotonic()
