"""The agent's process: start-up errors, shutdown, status and resource use."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from lone_agent import DOWN, UP, Desk, LoneAgent, code_of
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.apps.policy import write_policy
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.docker.engine import Engine
from moorage_agent.operations import compose_runner
from moorage_agent.operations.compose_runner import Chunk, ComposeRunner
from moorage_common.docker.states import OperationKind
from moorage_common.journal.journal import CancelOutcome, Journal, Record, State
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.tls import x509
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed, plain_environment
from moorage_lab.waiting import eventually, eventually_async
from running_stack import IMAGE, NEVER_HEALTHY, SLEEPER

STUBBORN = """\
#!/bin/sh
trap '' TERM
case "$*" in *config*) exit 1 ;; esac
echo begun
while :; do sleep 0.05; done
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def own(engine: PrivateEngine, sample_image: str, desk: Desk, tmp_path: Path) -> Iterator[LoneAgent]:
    """Return the test's own enrolled agent; the fixture doesn't restart it."""
    assert sample_image == IMAGE
    made = LoneAgent(tmp_path / "own", engine, desk).start()
    yield made
    if made.process.process.alive:
        made.process.terminate()
    made.clear()


@pytest.fixture
def command(engine: PrivateEngine, tmp_path: Path) -> Command:
    """Return a function that runs an agent command to its end, with tmp_path/own/data as its folder."""

    def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed("moorage-agent"), name, "--data-dir", str(tmp_path / "own" / "data")],
            env=plain_environment(DOCKER_HOST=engine.host) | environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def test_host_that_is_not_enrolled_does_not_start(command: Command) -> None:
    for name in ("serve", "status"):
        done = command(name)
        assert done.returncode == 1
        assert "not enrolled" in done.stderr
        assert "Traceback" not in done.stderr


def test_startup_failure_is_reported(own: LoneAgent, command: Command, desk: Desk) -> None:
    busy = command("serve")
    assert busy.returncode == 1
    assert f"{own.process.address} can't be listened on" in busy.stderr
    own.process.terminate()
    pki = own.data / "pki"
    good = (pki / "agent.pem").read_bytes()
    key = x509.key_from_pem(good)
    request = x509.signing_request(key, "x")
    old = desk.authority.issue_agent(request, own.name, datetime.now(UTC) - timedelta(days=100))
    (pki / "agent.pem").write_bytes(x509.key_to_pem(key) + old)
    assert re.search(r"certificate expired on \d{4}-\d\d-\d\d .* enrol this host again", command("serve").stderr)
    (pki / "agent.pem").write_bytes(b"nonsense")
    assert "certificate or key can't be read" in command("serve").stderr
    (pki / "agent.pem").write_bytes(good)
    (pki / "ca.crt").rename(pki / "away")
    assert "certificate or key can't be read" in command("serve").stderr
    (pki / "away").rename(pki / "ca.crt")
    assert "set MOORAGE_COMPOSE" in command("serve", MOORAGE_COMPOSE="/not/there").stderr
    assert "LOG_LEVEL is 'loud'" in command("serve", LOG_LEVEL="loud").stderr
    assert "unix://PATH" in command("serve", DOCKER_HOST="tcp://127.0.0.1:2375").stderr
    (own.data / "agent.json").write_text("{")
    assert "can't be read" in command("serve").stderr


async def test_agent_exits_within_two_seconds_and_operations_continue(own: LoneAgent) -> None:
    directory = own.app("going-on", NEVER_HEALTHY)
    async with own.called() as caller, caller.watch(directory):
        operation_id = await caller.start(UP, directory)
        following = asyncio.create_task(caller.finish(operation_id))
        out = own.output_file(operation_id)
        await eventually_async(lambda: b"Waiting" in out.read_bytes(), what="the start in its middle")
        began = time.monotonic()
        assert await asyncio.to_thread(own.process.terminate) == 0
        assert time.monotonic() - began < 3.5
        with pytest.raises(grpc.aio.AioRpcError):
            await following
    await asyncio.to_thread(own.process.start)
    async with own.called() as caller:
        done = await caller.finish(operation_id)
    # Compose itself saw the service turn unhealthy, seconds after the agent's exit.
    assert (done.end.end, done.end.cancelled_by) == (pb.OPERATION_END_EXITED, "")
    assert "unhealthy" in done.output


async def test_status_command_shows_state_and_problems(own: LoneAgent, command: Command) -> None:
    def shown(**environment: str) -> dict[str, str]:
        done = command("status", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())

    idle = await asyncio.to_thread(shown)
    assert idle["name"] == own.name
    assert idle["listens on"] == idle["advertised as"] == own.process.address
    assert idle["controller"] == own.desk.url
    assert idle["allowed roots"] == str(own.apps)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", idle["certificate until"])
    assert re.match(r"\d+\.", idle["Engine"])
    assert re.match(r"\d+\.", idle["Compose"])
    assert idle["running now"] == "nothing"
    slow = f"services: {{web: {{image: '{IMAGE}', stop_grace_period: 5s, command: sleep 1000}}}}\n"
    directory = own.app("at-work", slow)
    async with own.called() as caller:
        await caller.run(UP, directory)
        stop = await caller.start(pb.OPERATION_KIND_DOWN, directory)
        assert (await asyncio.to_thread(shown))["running now"] == f"{stop} (down in {directory})"
        await caller.finish(stop)
    (own.data / "policy.toml").write_text('allowed_roots = "/"\n')
    wrong = await asyncio.to_thread(lambda: shown(DOCKER_HOST="unix:///not/there", MOORAGE_COMPOSE="/not/there"))
    assert "doesn't answer" in wrong["Engine"]
    assert "set MOORAGE_COMPOSE" in wrong["Compose"]
    assert "must be a list" in wrong["allowed roots"]


async def test_missing_engine_is_reported_and_operations_are_refused(
    engine_folder: Path, desk: Desk, tmp_path: Path
) -> None:
    away = PrivateEngine(engine_folder / "agent-away")
    lone = await asyncio.to_thread(LoneAgent(tmp_path / "lone", away, desk).start)
    directory = lone.app("waiting", SLEEPER)
    try:
        async with lone.called() as caller:
            host = (await caller.stub.GetInfo(pb.GetInfoRequest(), timeout=10)).host
            assert (host.engine_reachable, host.engine_version) == (False, "")
            assert "doesn't answer" in host.engine_problem
            for kind in (UP, DOWN):
                operation_id = str(uuid4())
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await caller.start(kind, directory, operation_id=operation_id)
                # An error code makes it a definite reply, not a lost connection.
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert code_of(refused.value) == "engine_unreachable"
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await caller.finish(operation_id)
                assert code_of(unknown.value) == "operation_unknown"
    finally:
        await asyncio.to_thread(lone.process.terminate)


def test_old_operations_are_removed_at_startup(own: LoneAgent) -> None:
    async def run_one() -> str:
        async with own.called() as caller:
            return (await caller.run(UP, own.app(f"cleared-{uuid4().hex}", SLEEPER))).operation_id

    old, young = (own.output_file(asyncio.run(run_one())).parent for _ in range(2))
    own.process.terminate()
    for folder, days in ((old, 8), (young, 6)):
        moment = time.time() - days * 24 * 3600
        os.utime(folder / "exit", (moment, moment))
    own.process.start()
    eventually(lambda: not old.exists(), what="the old operation cleared away")
    assert young.exists()


def test_idle_agent_uses_little_memory(own: LoneAgent) -> None:
    status = Path(f"/proc/{own.process.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    assert int(found[1]) < 80 * 1024


def test_sweep_begins_without_grpc(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['moorage-agent', 'sweep', '--real-directory', sys.argv[1]]\n"
        "try: runpy.run_module('moorage_agent', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, sorted(m for m in sys.modules if m in {'grpc', 'cryptography'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=plain_environment(DOCKER_HOST="unix:///not/there"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    *said, last = done.stdout.splitlines()
    assert last == "1 []"
    assert "doesn't answer" in json.loads(said[-1])["message"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_operation_ignoring_cancel_is_killed_despite_agent_restart(
    engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    monkeypatch.setattr(compose_runner, "_KILL_AFTER_SECONDS", 0.5)
    stubborn = tmp_path / "docker-compose"
    stubborn.write_text(STUBBORN)
    stubborn.chmod(0o755)
    write_policy(tmp_path / "policy.toml", [str(tmp_path)])
    environment = {"DOCKER_HOST": engine.host}
    journal = Journal(tmp_path / "journal")
    journal.prepare()
    with closing(DirectoryReader(tmp_path / "policy.toml", str(stubborn), environment)) as reader:
        identities = Identities(reader)

        def runner_of_an_agent() -> ComposeRunner:
            deadlines = Deadlines(tmp_path / "deadlines.json", "boot")
            return ComposeRunner(journal, Engine(engine.host), identities, deadlines, str(stubborn), environment)

        runner = runner_of_an_agent()
        operation_id = str(uuid4())
        assert not await runner.start(operation_id, OperationKind.UP, WatchedApp(str(tmp_path), None))
        items = []
        async for item in runner.follow(operation_id, 0):
            items.append(item)
            if len(items) == 1 and restarted:
                # The agent that sent TERM exits before it can send KILL.
                assert await asyncio.to_thread(journal.cancel, operation_id, "tester") is CancelOutcome.SIGNALLED
                await runner_of_an_agent().resume_cancels()
            elif len(items) == 1:
                assert await runner.cancel(operation_id, "tester") is CancelOutcome.SIGNALLED
        assert items[0] == Chunk(0, b"begun\n")
        assert isinstance(items[-1], Record)
        assert (items[-1].state, items[-1].exit_code, items[-1].cancelled_by) == (State.EXITED, 128 + 9, "tester")
