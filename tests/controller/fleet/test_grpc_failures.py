"""Real gRPC failures, and their sentences for people."""

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from moorage_controller.hosts.grpc_failures import failure_sentence

SQLITE_ONLY = "what lies between the socket and the services asks no database"


@pytest.fixture
async def closed() -> AsyncIterator[str]:
    """Return an address of this machine at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
async def no_tls() -> AsyncIterator[str]:
    """Return an address at which something listens that speaks no TLS."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def sentence_of(address: str, seconds: float = 5.0) -> str:
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials()) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/moorage.v1.Agent/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=seconds)
    return failure_sentence(caught.value)


async def test_closed_port_is_reported(closed: str) -> None:
    assert await sentence_of(closed) == "nothing listens there: see that moorage-agent runs on the host."


async def test_unresolvable_name_is_reported() -> None:
    assert await sentence_of("agent.invalid:8443") == "the host's name can't be resolved."


async def test_foreign_service_on_port_is_reported(no_tls: str) -> None:
    said = await sentence_of(no_tls)
    assert said.startswith(("the TLS handshake failed", "the connection was cut"))


async def test_missing_reply_is_reported_as_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        said = await sentence_of(f"127.0.0.1:{silent.getsockname()[1]}", 0.5)
    assert said == "no answer came in time."
