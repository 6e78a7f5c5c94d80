"""An agent on a full disk: stops and deadlines still work; operations that need room are refused beforehand."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import grpc.aio
import pytest
from full_disks import FULL, SmallDisk
from google.protobuf.duration_pb2 import Duration
from lone_agent import DOWN, UP, Caller, Desk, LoneAgent, code_of
from moorage_agent.operations import sweep
from moorage_common.compose.command import clean_environment, down_command
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.images import ensure_sample_image
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async
from running_stack import NEVER_HEALTHY, SLEEPER


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """Return a disk with the state of an agent."""
    folder = tmp_path_factory.mktemp("small") / "data"
    folder.mkdir()
    with SmallDisk(folder) as made:
        yield made


@pytest.fixture(scope="module")
def lone(disk: SmallDisk, engine: PrivateEngine, sample_image: str, desk: Desk) -> Iterator[LoneAgent]:
    """Return an agent that keeps its state there."""
    assert sample_image
    made = LoneAgent(disk.folder.parent, engine, desk).start()
    yield made
    made.clear()
    made.process.terminate()


@pytest.fixture
async def caller(lone: LoneAgent) -> AsyncIterator[Caller]:
    """Call it as the controller does."""
    async with lone.called() as made:
        yield made
    lone.clear()


def deadline(directory: Path, seconds: float) -> pb.SetDeadlineRequest:
    """Return a request that sets an app's deadline at an agent."""
    remaining = Duration()
    remaining.FromTimedelta(timedelta(seconds=seconds))
    about = pb.Deadline(app_id=str(uuid4()), number=1, run_id=str(uuid4()), remaining=remaining)
    return pb.SetDeadlineRequest(app=pb.App(cd_path=str(directory)), deadline=about)


async def facts(caller: Caller) -> pb.Host:
    """Query the host's facts."""
    return (await caller.stub.GetInfo(pb.GetInfoRequest(), timeout=10)).host


@pytest.mark.parametrize("way", FULL)
async def test_stop_needs_no_room_and_a_start_is_refused(
    lone: LoneAgent, caller: Caller, disk: SmallDisk, way: str
) -> None:
    directory = lone.app(way, SLEEPER)
    assert (await caller.run(UP, directory)).end.exit_code == 0
    with disk.full(way):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.run(UP, directory)
        assert code_of(refused.value) == ("journal_unavailable" if way == "read-only" else "journal_full")
        operation_id = str(uuid4())
        for _ in range(2):
            await caller.start(DOWN, directory, operation_id=operation_id)
        done = await caller.finish(operation_id)
        assert (done.end.end, done.end.exit_code) == (pb.OPERATION_END_EXITED, 0)
        assert "This stop runs without a journal." in done.output.splitlines()[0]
        assert f"{way}-web-1" in done.output
        assert lone.containers(directory) == {}
        assert (await caller.finish(operation_id, 10)).raw == done.raw[10:]
        assert await caller.cancel(operation_id) == pb.CANCEL_OUTCOME_ALREADY_ENDED
        assert (await caller.run(DOWN, directory)).end.exit_code == 0, "once more does no harm"
    assert (await caller.run(UP, directory)).end.exit_code == 0
    assert (await caller.run(DOWN, directory)).end.exit_code == 0


async def test_missing_operation_can_be_buried_on_full_disk(lone: LoneAgent, caller: Caller, disk: SmallDisk) -> None:
    directory, operation_id = lone.app("buried", SLEEPER), str(uuid4())
    with disk.full("bytes"):
        assert await caller.cancel(operation_id) == pb.CANCEL_OUTCOME_BURIED
        await caller.start(UP, directory, operation_id=operation_id)
        done = await caller.finish(operation_id)
    assert (done.end.end, done.end.code) == (pb.OPERATION_END_BURIED, "cancelled")
    await caller.start(UP, directory, operation_id=operation_id)
    assert (await caller.finish(operation_id)).end.end == pb.OPERATION_END_BURIED
    assert lone.containers(directory) == {}


@pytest.mark.parametrize("way", FULL[:2])
async def test_stop_without_journal_waits_for_cancellable_start(
    lone: LoneAgent, caller: Caller, disk: SmallDisk, way: str
) -> None:
    directory = lone.app(f"at-work-{way}", NEVER_HEALTHY)
    starting = await caller.start(UP, directory)
    await eventually_async(lambda: lone.containers(directory).get(f"at-work-{way}-web-1") == "running", what="web")
    with disk.full(way):
        done = await caller.run(DOWN, directory)
        assert (done.end.end, done.end.code) == (pb.OPERATION_END_BURIED, "directory_busy")
        await caller.cancel(starting)
        await caller.finish(starting)
        assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert lone.containers(directory) == {}


@pytest.mark.parametrize("way", FULL)
async def test_dead_man_acts_on_full_disk_after_agent_restart(
    lone: LoneAgent, caller: Caller, disk: SmallDisk, way: str
) -> None:
    directory = lone.app(f"late-{way}", SLEEPER)
    await caller.run(UP, directory)
    # The controller has a minute after the deadline; 55 seconds of it are over.
    await caller.stub.SetDeadline(deadline(directory, -55), timeout=10)
    with disk.full(way):
        lone.process.kill()
        lone.process.start()
        await eventually_async(lambda: lone.containers(directory) == {}, timeout=60, what="it stopped")
        async with lone.called() as again:
            host = await facts(again)
            assert not host.keeps_deadlines
            assert str(disk.folder) in host.disk_problem
            assert host.engine_reachable
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await again.stub.SetDeadline(deadline(directory, 600), timeout=10)
            assert code_of(refused.value) == "deadlines_not_kept"
    lone.process.restart()


async def test_nearly_full_disk_is_reported(lone: LoneAgent, caller: Caller, disk: SmallDisk) -> None:
    async with caller.watch(lone.apps) as watching:
        await watching.until(lambda: watching.host.disk_problem == "", timeout=20)
        disk.remount("size=40m")
        await watching.until(lambda: "MiB left:" in watching.host.disk_problem, timeout=20)
        assert watching.host.disk_problem.startswith(f"The disk with {disk.folder} has less than 40 MiB left:")
        assert watching.host.keeps_deadlines
        with disk.full("bytes"):
            await watching.until(lambda: not watching.host.keeps_deadlines, timeout=20)
        await watching.until(lambda: watching.host.keeps_deadlines, timeout=20)


def test_compose_itself_needs_no_room_for_a_stop(lone: LoneAgent) -> None:
    directory = lone.app("roomless", SLEEPER)
    lone.compose(directory, "up", "-d")
    down = down_command(installed("docker-compose"), "roomless")
    # Neither in the temporary folder, nor at home.
    script = 'mount -t tmpfs -o nr_inodes=1 none /tmp && mount -t tmpfs -o nr_inodes=1 none /root && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "down", *down]
    environment = clean_environment("/", {"DOCKER_HOST": lone.engine.host, "HOME": "/root"})
    done = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert lone.containers(directory) == {}


def test_stop_succeeds_without_room_for_its_output(lone: LoneAgent) -> None:
    directory = lone.app("speechless", SLEEPER)
    identity = AppIdentity(str(directory), str(directory), None)
    environment = clean_environment("/", {"DOCKER_HOST": lone.engine.host, "HOME": "/root"})
    for argv in (down_command(installed("docker-compose"), "speechless"), sweep.command(identity)):
        lone.compose(directory, "up", "-d")
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(argv, env=environment, cwd="/", stdout=full, stderr=full, timeout=60, check=False)
        assert lone.containers(directory) == {}, argv
        assert done.returncode == 0, argv


async def test_stop_succeeds_with_engine_on_same_full_disk(engine_folder: Path, desk: Desk) -> None:
    folder = engine_folder / "whole"
    folder.mkdir()
    with SmallDisk(folder) as disk, PrivateEngine(folder / "e") as engine:
        ensure_sample_image(engine)
        whole = LoneAgent(folder / "agent", engine, desk).start()
        try:
            async with whole.called() as caller:
                directory = whole.app("whole", SLEEPER)
                assert (await caller.run(UP, directory)).end.exit_code == 0
                with disk.full("bytes"):
                    done = await caller.run(DOWN, directory)
                    assert whole.containers(directory) == {}
                    assert done.end.exit_code == 0
        finally:
            whole.process.terminate()
