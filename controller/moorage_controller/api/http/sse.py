"""Server-sent events: streaming replies."""

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
"""A stream whose client reads nothing for this long is dropped; any read restarts the limit."""
_POLL_SECONDS = 0.5
"""Poll interval for disconnected clients, over all streams; the library doesn't report disconnects."""
_ADMIT_SECONDS = 30.0
"""Interval of access checks: the longest time that a stream outlives its token."""
_CONNECTED_SECONDS = 0.25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Clients send `id` back as Last-Event-ID; `name` is the event's type."""

    data: str
    id: str | None = None
    name: str | None = None


Events = AsyncGenerator[Sequence[Event], None]
"""Batches of events. Closed after a disconnect. An exception ends the stream, and the client reconnects."""
Admit = Callable[[], Awaitable[object]]
"""Raises a MoorageError if the caller has lost access."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The body of a streaming reply."""

    events: Events
    held: ExitStack
    """Resources held until the end of the stream."""


async def while_connected(request: web.Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await a slow answer; cancel it if the client disconnects (UnreadableError)."""
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
    """The open streams."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[None], web.Request] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def serve(self, request: web.Request, body: Stream, admit: Admit) -> web.StreamResponse:
        """Send events until they end, or the client disconnects, stops reading or loses access."""
        response = EventSourceResponse(send_timeout=_SEND_SECONDS, ping_interval=_HEARTBEAT_SECONDS)
        with body.held:
            sending = asyncio.create_task(
                _Sending(request, response, body.events, admit).run(), name=f"stream {request.path}"
            )
            self._open[sending] = request
            self._poll()
            try:
                await asyncio.wait({sending})
            finally:
                del self._open[sending]
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return response

    def _poll(self) -> None:
        """End the streams of disconnected clients; an idle stream would otherwise notice only at its next heartbeat."""
        if self._looking is not None:
            self._looking.cancel()
        for sending, request in self._open.items():
            if request.transport is None or request.transport.is_closing():
                sending.cancel()
        self._looking = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._poll) if self._open else None

    async def close(self, _application: web.Application) -> None:
        """End all streams; their clients reconnect, to any running controller."""
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
                # Started before the reply: aclose() of an unstarted generator doesn't run its cleanup.
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
                # Sends that fit into the buffer don't yield to the event loop.
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
