"""An Engine that accepts calls and never answers: the agent still shuts down, and its journal stays readable."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from lone_agent import Desk, LoneAgent
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.pids import Pid


@pytest.fixture
def alone(engine_folder: Path, desk: Desk, tmp_path: Path) -> Iterator[tuple[LoneAgent, Pid]]:
    """Return an agent and its exclusive dockerd."""
    with PrivateEngine(engine_folder / "engine-hung") as private:
        made = LoneAgent(tmp_path / "hung", private, desk).start()
        dockerd = private._dockerd.identity
        try:
            yield made, dockerd
        finally:
            dockerd.send(signal.SIGCONT)
            if made.process.process.alive:
                made.process.terminate()
    private.remove()


async def test_agent_with_hung_engine_serves_journal_and_shuts_down_promptly(alone: tuple[LoneAgent, Pid]) -> None:
    hung, dockerd = alone
    async with hung.called() as caller, caller.watch(hung.app("hung", None)):
        dockerd.send(signal.SIGSTOP)
        asking = [asyncio.create_task(_info(hung)) for _ in range(20)]
        began = time.monotonic()
        assert await caller.cancel(str(uuid4())) == pb.CANCEL_OUTCOME_BURIED
        assert time.monotonic() - began < 2
        for info in await asyncio.gather(*asking):
            assert not info.host.engine_reachable
        began = time.monotonic()
        assert await asyncio.to_thread(hung.process.process.terminate, grace=30) == 0
        assert time.monotonic() - began < 3.5


async def _info(agent: LoneAgent) -> pb.GetInfoResponse:
    async with agent.called() as caller:
        reply: pb.GetInfoResponse = await caller.stub.GetInfo(pb.GetInfoRequest(), timeout=5)
        return reply
