"""Connections of the REST API, with limits on their number, their number per network, and their idle time.

The servers of asyncio and aiohttp have no such limits. Without free file descriptors they stop listening or spin.
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
"""Delay after a failed accept: most likely no file descriptor is free."""
_TELL_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits: `total` connections, and `each` per network (an IPv4 address, an IPv6 /64). Times are in seconds.

    `headers` limits a TLS handshake, and the time from a request's first byte to the end of its headers. `idle` limits
    the time without a request; `idle_proxy` is the same for a trusted proxy, whose connections count only in `total`.
    `send` limits the time in which a client reads no byte of a reply.
    """

    total: int
    each: int
    headers: float = 10.0
    idle: float = 30.0
    idle_proxy: float = 3630.0
    send: float = 30.0

    @classmethod
    def of_files(cls, most: int) -> "Limits":
        """Return the limits for a process with `most` file descriptors, some of which it needs for other purposes."""
        total = min(4096, most // 2)
        return cls(total, each=total // 4)


class Connection(RequestHandler):
    """One connection with time limits; `released` is called at its end."""

    def __init__(
        self, server: web.Server, limits: Limits, idle: float, released: Callable[["Connection"], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, access_log=None, keepalive_timeout=idle)  # type: ignore[arg-type] # None: none
        self._limits = limits
        self._released: Callable[[Connection], None] | None = released
        self._begun = 0
        self.beginning: asyncio.Task[None] | None = None
        """The task that attaches its socket, including the TLS handshake."""
        self._reading: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for its client: for a request, for the rest of one, or for the TLS handshake."""
        if self.transport is None:
            return True
        if self._current_request is not None:
            return not self._current_request.content.is_eof()
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def data_received(self, data: bytes) -> None:
        """Receive bytes; the first bytes of a request start the time limit for its headers."""
        super().data_received(data)
        if self._request_count != self._begun:
            self._begun = self._request_count
            self._stop_reading_timer()
        elif self._reading is None and self._current_request is None and self.idle:
            self._reading = self._loop.call_later(self._limits.headers, self.end, "headers")

    def pause_writing(self) -> None:
        """Pause writing, because the client doesn't read; start the time limit for that."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Resume writing, and stop its time limit."""
        self._stop_sending_timer()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the place of the connection."""
        self._stop_reading_timer()
        self._stop_sending_timer()
        super().connection_lost(exc)
        self.release()

    def release(self) -> None:
        """Stop counting the connection; later calls do nothing."""
        released, self._released = self._released, None
        if released is not None:
            released(self)

    def end(self, late: str) -> None:
        """Abort the connection; `late` is the reason in the log."""
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
    """Accepts connections for an application's server. `trusts` returns whether an address is a trusted proxy."""

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
        """Each connection's network, empty for a trusted proxy; the oldest first."""
        self._counts: Counter[str] = Counter()
        self._refused = 0
        self._told = 0.0

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Start listening; return the address and port. Raises OSError."""
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
        """Stop accepting; open connections continue."""
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
        """Return a counted connection, or None above the limits. The oldest idle connection is closed to make room."""
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
        # Clients without TLS, or with a slow handshake, are dropped silently.
        with suppress(OSError, TimeoutError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, client, ssl=self._tls, ssl_handshake_timeout=limit
            )

    def _warn_seldom(self, event: str, **fields: object) -> None:
        """Log a warning, but not more often than every ten seconds."""
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
