"""Connections to an agent that bring no certificate: they end soon, and the controller comes through all the while."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lone_agent import Desk, LoneAgent
from moorage_common.open_files import raise_limit
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_lab.engine import PrivateEngine
from moorage_lab.waiting import eventually
from stack import IMAGE

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


def files(process_id: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))
