"""The gate in front of the gRPC server: limits the unauthenticated connections of one address.

gRPC doesn't count connections per address, and doesn't report one before its TLS handshake is done. So the agent
accepts them here and forwards their bytes unchanged to the server's Unix socket. TLS is still terminated by gRPC.
"""

import asyncio
import ipaddress
import os
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from moorage_agent.errors import SetupError

log = structlog.get_logger(__name__)

MOST_OF_ADDRESS = 64
"""Connections of an IPv4 address or an IPv6 /64; a controller needs one or two."""
HANDSHAKE_SECONDS = 5
"""The server's time limit for a TLS handshake."""
_FILES_EACH = 3
_MOST = 4096
_BACKLOG = 512
_FLUSH_SECONDS = 10.0
_TELL_EVERY_SECONDS = 60.0
_LONGEST_PATH = 90
"""Bytes of the folder's path: a socket's path has 108 bytes at most."""
_ELSEWHERE = (None, "/dev/shm", "/run")  # noqa: S108 - folders of random names are made there
"""Alternative folders of the sockets; None is the folder for temporary files."""


Target = Callable[[], Awaitable[Path]]


class Gate:
    """Accepts connections at HOST:PORT and forwards them to the server; `files` is the limit of open files."""

    def __init__(self, data_dir: Path, files: int) -> None:
        self._most = min(_MOST, files // 2 // _FILES_EACH)
        self._counts: Counter[str] = Counter()
        self._fronts: dict[_Front, str] = {}
        """The key each connection is counted by; the oldest connection first."""
        self._server: asyncio.Server | None = None
        self._told = -_TELL_EVERY_SECONDS
        self._refused = 0
        self._folder = data_dir / "sockets"
        self._made = False
        self.target: Target | None = None

    async def open(self, listen: str) -> None:
        """Bind the address; nothing is accepted before `start`. Raises SetupError if the agent can't listen there."""
        try:
            await self._open_at(listen)
        except OSError:
            sentence = f"{listen} can't be listened on: stop what uses it, or enrol with another --listen."
            raise SetupError(sentence) from None
        # Sockets left behind by a killed agent: the address is ours, so nothing listens on them.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = _socket_folder(self._folder)
        self._made = True

    def socket_path(self, number: int) -> Path:
        """Return the path of the Unix socket on which a server listens."""
        return self._folder / str(number)

    async def start(self, target: Target) -> None:
        """Start accepting; each connection is forwarded to the socket that `target` returns for it."""
        self.target = target
        assert self._server is not None
        await self._server.start_serving()

    async def _open_at(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        self._server = await loop.create_server(
            lambda: _Front(self), sock=listening, backlog=_BACKLOG, start_serving=False
        )

    async def close(self) -> None:
        """Stop accepting and end all connections; call it when the server has stopped."""
        if self._server is not None:
            self._server.close()
        for front in tuple(self._fronts):
            front.abort()
        # If the address was in use, the folder belongs to another agent.
        if self._made:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def admit(self, front: "_Front", address: str) -> bool:
        """Count a connection; False if over a limit and no older one without a handshake can be dropped for it."""
        place = _network(address)
        full = self._counts[place] >= MOST_OF_ADDRESS
        if (full and not self._make_room(place)) or (len(self._fronts) >= self._most and not self._make_room(None)):
            self._log_refusal(address)
            return False
        self._counts[place] += 1
        self._fronts[front] = place
        return True

    def leave(self, front: "_Front") -> None:
        """Stop counting a connection."""
        place = self._fronts.pop(front, None)
        if place is not None:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]

    def _make_room(self, place: str | None) -> bool:
        for front, of in self._fronts.items():
            if place in {None, of} and not front.proved:
                front.abort()
                self.leave(front)
                return True
        return False

    def _log_refusal(self, address: str) -> None:
        self._refused += 1
        if time.monotonic() - self._told >= _TELL_EVERY_SECONDS:
            log.warning("connections_refused", address=address, times=self._refused)
            self._told, self._refused = time.monotonic(), 0


class _End(asyncio.Protocol):
    """One end of a connection: forwards received bytes to the `other`, with backpressure."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.ended = False
        """Whether EOF was received."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Forward the bytes."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Forward EOF; the other direction stays open until its own EOF. False closes the connection."""
        self.ended = True
        if self.other is None or self.other.transport is None:
            return False
        self.other.transport.write_eof()
        return not self.other.ended

    def pause_writing(self) -> None:
        """Pause reading on the other end: this one's buffer is full."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Resume reading on the other end."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Close the other end, too, after it has flushed its buffer."""
        self.transport = None
        other = self.other
        if other is not None and other.transport is not None:
            other.transport.close()
            # A caller that stops reading must not hold the buffered bytes indefinitely.
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, other.abort)

    def abort(self) -> None:
        """Abort it without flushing."""
        if self.transport is not None:
            self.transport.abort()


class _Front(_End):
    """The caller's end: admitted or rejected, then connected to the server's."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._began = time.monotonic()
        self._first = b""
        self._silence: asyncio.TimerHandle | None = None
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or abort it."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        if not address or not self._gate.admit(self, str(address[0])):
            self.abort()
            return
        assert self.transport is not None
        # A caller that sends nothing is never connected to the server.
        self._silence = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        """Forward the bytes; the first ones connect to the server."""
        if self.other is not None:
            super().data_received(data)
        elif self.transport is not None:
            self._first += data
            self.transport.pause_reading()
            if self._joining is None:
                self._joining = asyncio.create_task(self._join())

    def connection_lost(self, exc: Exception | None) -> None:
        """Release its place in the count."""
        super().connection_lost(exc)
        if self._silence is not None:
            self._silence.cancel()
        self._gate.leave(self)

    @property
    def proved(self) -> bool:
        """Whether it has finished its TLS handshake: by that time the server has closed those that haven't."""
        return time.monotonic() - self._began > HANDSHAKE_SECONDS + 1

    async def _join(self) -> None:
        target = self._gate.target
        assert target is not None
        back = _End()
        back.other = self
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: back, str(await target()))
        except OSError as error:
            log.warning("connection_not_passed_on", error=str(error))
            self.abort()
            return
        self.other = back
        if self.transport is None or back.transport is None:
            back.abort()  # the caller is gone already
            self.abort()
            return
        if self._silence is not None:
            self._silence.cancel()
        back.transport.write(self._first)
        self._first = b""
        self.transport.resume_reading()


def _socket_folder(wanted: Path) -> Path:
    """Make that folder, or another if its path is too long or can't be written to. Raises SetupError."""
    if len(os.fsencode(wanted)) <= _LONGEST_PATH:
        with suppress(OSError):
            wanted.mkdir(mode=0o700, exist_ok=True)
            return _proven(wanted)
    for place in _ELSEWHERE:
        with suppress(OSError):
            return _proven(Path(tempfile.mkdtemp(prefix="moorage-agent-", dir=place)))
    raise SetupError(f"No disk takes the agent's sockets: free space on the disk with {wanted.parent}.")


def _proven(folder: Path) -> Path:
    """Return the folder after a test that sockets can be made in it. Raises OSError."""
    probe = folder / "probe"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(probe))
    probe.unlink()
    return folder


def _network(address: str) -> str:
    """Return the key an address is counted by: the IPv4 address, or the /64 network of an IPv6 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
