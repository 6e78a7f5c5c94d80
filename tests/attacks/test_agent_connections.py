"""Connections to an agent without a client certificate: they are closed soon, and never block the controller."""

import asyncio
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lone_agent import Desk, LoneAgent
from moorage_agent.rpc.gate import MOST_OF_ADDRESS
from moorage_common.open_files import raise_limit
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.waiting import eventually
from running_stack import IMAGE

MANY = 1200


@pytest.fixture
def agent(engine: PrivateEngine, sample_image: str, tmp_path: Path) -> Iterator[LoneAgent]:
    """Return an agent that is started with a soft limit of 1024 files, as a shell or systemd would."""
    assert sample_image == IMAGE
    desk = Desk().start()
    made = LoneAgent(tmp_path, engine, desk)
    made.process.process.argv[:0] = ["prlimit", "--nofile=1024:", "--"]
    made.start()
    yield made
    made.process.terminate()
    desk.stop()


async def test_silent_connections_without_a_certificate_end_within_seconds(agent: LoneAgent) -> None:
    raise_limit()
    host, port = agent.process.address.rsplit(":", 1)
    process_id = agent.process.process.pid
    before = files(process_id)
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        async with agent.channel() as channel:
            told = await AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=4)
        assert told.ListFields()
        eventually(lambda: files(process_id) < before + 50, timeout=15, what="the files given back")


async def test_connections_per_address_are_bounded(agent: LoneAgent) -> None:
    raise_limit()
    host, port = agent.process.address.rsplit(":", 1)
    with ExitStack() as stack:
        for _ in range(4 * MOST_OF_ADDRESS):
            made = socket.create_connection((host, int(port)), timeout=5, source_address=("127.0.0.2", 0))
            stack.enter_context(made)
        async with agent.channel() as channel:
            told = await AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=4)
        assert told.ListFields()
        assert 0 < accepted(agent, "127.0.0.2") <= MOST_OF_ADDRESS
        eventually(lambda: accepted(agent, "127.0.0.2") == 0, timeout=15, what="silent connections ended")


async def test_closed_connections_are_no_longer_counted(agent: LoneAgent) -> None:
    for _ in range(MOST_OF_ADDRESS + 16):
        async with agent.channel() as channel:
            told = await AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=10)
        assert told.ListFields()
    eventually(lambda: accepted(agent, "127.0.0.1") == 0, timeout=10, what="all connections closed")
    assert accepted(agent, "127.0.0.1") == 0


async def test_second_agent_on_taken_address_does_not_affect_the_first(agent: LoneAgent) -> None:
    first = agent.process.process
    second = await asyncio.to_thread(
        subprocess.run, first.argv, env=first.environment, capture_output=True, check=False, timeout=30, text=True
    )
    assert second.returncode == 1
    assert "can't be listened on" in second.stdout + second.stderr
    async with agent.channel() as channel:
        await AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=10)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("reset", [False, True])
async def test_connections_closed_before_handshake_do_not_end_agent(
    agent: LoneAgent, said: bytes, *, reset: bool
) -> None:
    host, port = agent.process.address.rsplit(":", 1)
    waiting: list[socket.socket] = []
    for _ in range(600):
        made = socket.create_connection((host, int(port)), timeout=5)
        waiting.append(made)
        if said:
            made.sendall(said)
        if len(waiting) == MOST_OF_ADDRESS:
            end(waiting.pop(0), reset=reset)
    for each in waiting:
        end(each, reset=reset)
    async with agent.channel() as channel:
        await AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=10)
    assert agent.process.process.alive


def end(connection: socket.socket, *, reset: bool) -> None:
    """Close a connection, by FIN or by RST."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def accepted(agent: LoneAgent, address: str) -> int:
    """Return how many established connections from an IPv4 address an agent has."""
    here = f":{int(agent.process.address.rsplit(':', 1)[1]):04X}"
    raw = socket.inet_aton(address)[::-1].hex().upper()
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(here) and row[2].startswith(raw) and row[3] == "01" for row in rows)


def files(process_id: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))
