"""The dead man's switch on a real Engine: the agent stops overdue apps itself, and retries until they are gone."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import grpc.aio
import pytest
from lone_agent import UP, Caller, LoneAgent, code_of
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.deadlines import dead_man_switch as dead_man
from moorage_agent.deadlines.dead_man_switch import DeadManSwitch
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.docker.engine import Engine
from moorage_agent.operations.compose_runner import ComposeRunner
from moorage_common.journal.journal import Journal
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.hosts.hung_mount import HungMount
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async
from running_stack import DEAF, NEVER_HEALTHY, SLEEPER


@asynccontextmanager
async def watched(agent: LoneAgent) -> AsyncIterator[Deadlines]:
    """Run a dead man's switch in this process, on the journal and the apps of an agent that has no deadlines."""
    environment = {"DOCKER_HOST": agent.engine.host}
    reader = DirectoryReader(agent.data / "policy.toml", installed("docker-compose"), environment)
    engine = Engine(agent.engine.host, reader.real_paths)
    identities = Identities(reader)
    journal = Journal(agent.data)
    deadlines = Deadlines(agent.folder / "deadlines.json", "boot")
    runner = ComposeRunner(journal, engine, identities, deadlines, installed("docker-compose"), environment)
    running = asyncio.create_task(DeadManSwitch(deadlines, runner).run())
    try:
        yield deadlines
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        engine.close()
        reader.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process it acts immediately, and retries soon."""
    monkeypatch.setattr(dead_man, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(dead_man, "_FIRST_RETRY", 0.5)


async def test_dead_man_stops_only_overdue_apps(agent: LoneAgent, caller: Caller) -> None:
    over, on = agent.app("over", DEAF), agent.app("on", SLEEPER)
    for directory in (over, on):
        await caller.run(UP, directory)
    (over / "compose.yaml").unlink()
    app_id, run_id = str(uuid4()), str(uuid4())
    async with watched(agent) as deadlines:
        await deadlines.set(WatchedApp(str(on), None), str(uuid4()), 1, str(uuid4()), 3600)
        await deadlines.set(WatchedApp(str(over), None), app_id, 1, run_id, 1)
        assert agent.containers(over) == {"over-web-1": "running"}
        await eventually_async(lambda: agent.containers(over) == {}, timeout=30, what="it stopped")
        await eventually_async(lambda: len(deadlines.held) == 1, what="the deadline over")
        assert agent.containers(on) == {"on-web-1": "running"}
        operation_id = deadlines.of(str(over)).stops[app_id]
    assert (await caller.finish(operation_id)).end.exit_code == 0


async def test_dead_man_stops_app_in_hung_directory(agent: LoneAgent, caller: Caller) -> None:
    hung, on = agent.app("hung/over", SLEEPER), agent.app("beside", SLEEPER)
    for directory in (hung, on):
        await caller.run(UP, directory)
    async with watched(agent) as deadlines:
        with HungMount(hung.parent, os.getpid()):
            await deadlines.set(WatchedApp(str(hung), None), str(uuid4()), 1, str(uuid4()), 0)
            await eventually_async(lambda: agent.containers(agent.apps) == {"beside-web-1": "running"}, timeout=30)
        assert agent.containers(hung) == {}
        assert agent.containers(on) == {"beside-web-1": "running"}


async def test_dead_man_waits_for_operation_in_flight(agent: LoneAgent, caller: Caller) -> None:
    slow = agent.app("slow", NEVER_HEALTHY)
    starting = await caller.start(UP, slow)
    await eventually_async(lambda: agent.containers(slow).get("slow-web-1") == "running", timeout=20, what="web")
    async with watched(agent) as deadlines:
        await deadlines.set(WatchedApp(str(slow), None), str(uuid4()), 1, str(uuid4()), 0)
        await eventually_async(lambda: deadlines.held[0].tries >= 1, timeout=10, what="a try that had to wait")
        assert deadlines.of(str(slow)).stops == {}, "what never ran isn't told"
        await caller.cancel(starting)
        await eventually_async(lambda: agent.containers(slow) == {}, timeout=40, what="it stopped")


async def test_bad_deadline_is_refused_with_error_code(caller: Caller) -> None:
    for deadline in (pb.Deadline(), pb.Deadline(app_id="x"), pb.Deadline(app_id=str(uuid4()), run_id="x")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.stub.SetDeadline(pb.SetDeadlineRequest(deadline=deadline), timeout=10)
        assert code_of(refused.value) == "invalid_request"
