"""The connections of the REST API: how many there may be, of whom, and for how long they may idle.

Neither asyncio's servers nor aiohttp's limit any of that; and where no file is left to open they stop to listen, or
spin.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from moorage_controller.auth.rate_limit import network

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_PAUSE_SECONDS = 0.2
"""After an accept that failed: most likely no file is left to open."""
_TELL_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`total` connections, `each` of one network (an IPv4 address, an IPv6 /64); the times are seconds.

    `headers` from a request's first byte to the end of its headers, and for a TLS handshake; `idle` without a request,
    `idle_proxy` of a trusted proxy, whose connections count in `total` alone; `send` without a byte of a reply taken.
    """

    total: int
    each: int
    headers: float = 10.0
    idle: float = 30.0
    idle_proxy: float = 3630.0
    send: float = 30.0

    @classmethod
    def of_files(cls, most: int) -> "Limits":
        """Return the limits for a process that may open so many files: it needs some for itself, and its hosts."""
        total = min(4096, most // 2)
        return cls(total, each=total // 4)


class Connection(RequestHandler):
    """One connection that keeps the limits of time; `released` is called at its end."""

    def __init__(
        self, server: web.Server, limits: Limits, idle: float, released: Callable[["Connection"], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, access_log=None, keepalive_timeout=idle)  # type: ignore[arg-type] # None: none
        self._limits = limits
        self._released: Callable[[Connection], None] | None = released
        self._begun = 0
        self.beginning: asyncio.Task[None] | None = None
        """What hands it its socket, TLS included."""
        self._reading: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for its caller: for a request, for the rest of one, or for TLS."""
        if self.transport is None:
            return True
        if self._current_request is not None:
            return not self._current_request.content.is_eof()
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def data_received(self, data: bytes) -> None:
        """Take bytes in: where they begin a request, the rest of its headers is to follow soon."""
        super().data_received(data)
        if self._request_count != self._begun:
            self._begun = self._request_count
            self._stop_reading_timer()
        elif self._reading is None and self._current_request is None and self.idle:
            self._reading = self._loop.call_later(self._limits.headers, self.end, "headers")

    def pause_writing(self) -> None:
        """Stop to write, since the caller takes nothing; he is to go on soon."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Write again."""
        self._stop_sending_timer()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give its place free."""
        self._stop_reading_timer()
        self._stop_sending_timer()
        super().connection_lost(exc)
        self.release()

    def release(self) -> None:
        """Count it no more."""
        released, self._released = self._released, None
        if released is not None:
            released(self)

    def end(self, late: str) -> None:
        """Cut the connection."""
        log.info("connection_ended", late=late)
        if self.transport is not None:
            self.transport.abort()
        elif self.beginning is not None:
            self.beginning.cancel()

    def _watch_sending(self, before: int | None = None) -> None:
        left = self.transport.get_write_buffer_size() if self.transport is not None else 0
        if before is not None and left >= before:
            self.end("reply")
        else:
            self._sending = self._loop.call_later(self._limits.send, self._watch_sending, left)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_sending_timer(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None


class Listener:
    """Accepts connections for an application's server. `trusts` tells whether an address is a trusted proxy's."""

    def __init__(
        self, server: web.Server, limits: Limits, trusts: Callable[[str], bool], tls: ssl.SSLContext | None = None
    ) -> None:
        self._server = server
        self._limits = limits
        self._trusts = trusts
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._beginning: set[asyncio.Task[None]] = set()
        self._open: dict[Connection, str] = {}
        """With the network that each counts for, empty for a proxy's; the oldest first."""
        self._counts: Counter[str] = Counter()
        self._refused = 0
        self._told = 0.0

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the address. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                self._sockets.append(_listening(family, address))
        except OSError:
            await self.close()
            raise
        self._accepting = [asyncio.create_task(self._accept(each), name="accept") for each in self._sockets]
        name = self._sockets[0].getsockname()
        return name[0], name[1]

    async def close(self) -> None:
        """Accept no more; the connections there are go on."""
        tasks = [*self._accepting, *self._beginning]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(listening)
            except OSError as error:
                self._warn_seldom("accept_failed", error=str(error))
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            connection = self._admitted(str(address[0]))
            if connection is None:
                client.close()
                continue
            task = connection.beginning = asyncio.create_task(self._begin(client, connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
            task.add_done_callback(partial(_begun, connection))

    def _admitted(self, address: str) -> Connection | None:
        """Return a connection that is counted, None for one too many. One that idles makes room for it, the oldest."""
        trusted = self._trusts(address)
        place = "" if trusted else network(address)
        if place and self._counts[place] >= self._limits.each and not self._make_room(place):
            self._warn_seldom("connection_refused", address=address, reason="too many of this address")
            return None
        if len(self._open) >= self._limits.total and not self._make_room(None):
            self._warn_seldom("connection_refused", address=address, reason="too many in all")
            return None
        idle = self._limits.idle_proxy if trusted else self._limits.idle
        connection = Connection(self._server, self._limits, idle, self._release)
        self._open[connection] = place
        self._counts[place] += 1
        return connection

    def _make_room(self, place: str | None) -> bool:
        for connection, of in self._open.items():
            if connection.idle and place in {None, of}:
                connection.end("crowded out")
                connection.release()
                return True
        return False

    def _release(self, connection: Connection) -> None:
        place = self._open.pop(connection)
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._counts[place]

    async def _begin(self, client: socket.socket, connection: Connection) -> None:
        limit = self._limits.headers if self._tls is not None else None
        # Whoever speaks no TLS, or too slowly, is dropped without a word.
        with suppress(OSError, TimeoutError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, client, ssl=self._tls, ssl_handshake_timeout=limit
            )

    def _warn_seldom(self, event: str, **fields: object) -> None:
        """Log, but no more often than somebody reads."""
        self._refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._told >= _TELL_EVERY_SECONDS:
            log.warning(event, times=self._refused, **fields)
            self._refused, self._told = 0, now


def _begun(connection: Connection, task: asyncio.Task[None]) -> None:
    connection.beginning = None
    if task.cancelled() or connection.transport is None:
        connection.release()


def _listening(family: int, address: Sequence[object]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(tuple(address))
        made.listen(_BACKLOG)
        made.settimeout(0)
    except OSError:
        made.close()
        raise
    return made
