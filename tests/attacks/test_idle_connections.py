"""Silent and slow connections don't exhaust the controller; real processes with a low limit of open files."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from moorage_controller.connections import Limits, Listener
from moorage_lab.api import Api
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.waiting import eventually

FILES = 300
"""Limit of open files per process."""
MANY = 400
HALF_A_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
HALF_A_BODY = (
    b"POST /api/auth/login HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
)


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """Return a controller that may open few files."""
    made = ControllerProcess(tmp_path_factory.mktemp("idle"))
    made.process.argv[:0] = ["prlimit", f"--nofile={FILES}:{FILES}", "--"]
    with made as running:
        yield running


@contextmanager
def crowd(port: int, says: bytes, number: int = MANY) -> Iterator[list[socket.socket]]:
    """Open connections from one address that send the same few bytes and then nothing."""
    with ExitStack() as stack:
        made = []
        for _ in range(number):
            one = stack.enter_context(socket.socket())
            one.settimeout(5)
            one.connect(("127.0.0.1", port))
            made.append(one)
            try:
                one.sendall(says)
            except OSError:
                continue  # it was refused
        yield made


def files(process_id: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))


@pytest.mark.parametrize("says", [b"", HALF_A_REQUEST, HALF_A_BODY], ids=["nothing", "half-headers", "half-body"])
def test_many_connections_leave_controller_responsive(controller: ControllerProcess, says: bytes) -> None:
    before = files(controller.process.pid)
    with crowd(controller.port, says):
        for _ in range(5):
            began = time.monotonic()
            Api(controller.url, timeout=1).get("/healthz").expect(200)
            assert time.monotonic() - began < 1
        assert files(controller.process.pid) < FILES - 50
    eventually(lambda: files(controller.process.pid) <= before + 5, what="all files given back")
    Api(controller.url, timeout=1).get("/healthz").expect(200)


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    """Return the address of a server with short timeouts."""

    async def long(_: web.Request) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(1.5)
        return web.Response(text="done")

    application = web.Application()
    application.add_routes([web.get("/long", long), web.get("/slow", slow)])
    runner = web.AppRunner(application)
    await runner.setup()
    assert runner.server is not None
    limits = Limits(total=8, each=4, headers=0.5, idle=1.0, send=0.5)
    listener = Listener(runner.server, limits, lambda address: address == "127.0.0.9")
    yield await listener.open("127.0.0.1", 0)
    await listener.close()
    await runner.cleanup()


async def opened(address: tuple[str, int], says: bytes = b"", of: str = "127.0.0.1") -> asyncio.StreamReader:
    """Open a connection from an address, and send something."""
    reader, writer = await asyncio.open_connection(*address, local_addr=(of, 0))
    writer.write(says)
    reader.writer = writer  # type: ignore[attr-defined] # kept open as long as the reader
    return reader


async def lasted(reader: asyncio.StreamReader) -> float:
    """Return after how many seconds the other side ended a connection."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(5):
            while await reader.read(1 << 16):
                pass
    except ConnectionError:
        pass
    return time.monotonic() - began


async def test_endless_headers_and_idle_connections_are_closed(address: tuple[str, int]) -> None:
    half, silent = await opened(address, HALF_A_REQUEST), await opened(address)
    seconds = await asyncio.gather(lasted(half), lasted(silent))
    assert 0.4 < seconds[0] < 0.95
    assert 0.9 < seconds[1] < 2


async def test_slow_reply_is_not_cut_off(address: tuple[str, int]) -> None:
    reader = await opened(address, b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_client_that_reads_no_reply_is_disconnected(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(b"GET /long HTTP/1.1\r\nHost: here\r\n\r\n")
        await asyncio.sleep(1.5)  # past the limit: no event signals it
        client.settimeout(5)
        with pytest.raises(ConnectionError):
            drain(client)


def drain(client: socket.socket) -> None:
    """Read the rest. Raises ConnectionError, also on a regular close before the end of the reply."""
    left = 32 << 20
    while left > 0:
        got = len(client.recv(1 << 20))
        if not got:
            raise ConnectionError
        left -= got


async def test_connections_per_address_are_limited(address: tuple[str, int]) -> None:
    busy = b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n"
    mine = [await opened(address, busy) for _ in range(4)]
    await asyncio.sleep(0.1)
    assert await lasted(await opened(address, busy)) < 0.5
    others = await opened(address, busy, of="127.0.0.2")
    proxy = [await opened(address, busy, of="127.0.0.9") for _ in range(3)]
    for reader in (*mine, others, *proxy):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
