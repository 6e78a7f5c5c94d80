"""Environment and output of an operation: complete output, and a sentence for each failure."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import docker
import grpc
import grpc.aio
import pytest
from full_disks import covered
from lone_agent import DOWN, UP, Caller, Desk, LoneAgent, code_of
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async
from running_stack import IMAGE, SLEEPER

_LINES = 20_000
_SECRET = "s3cr3t-of-the-agent"  # noqa: S105 - looked for where it must not be
_TALKATIVE = f"""\
#!/bin/sh
case "$*" in
*" up "*)
    seq -f 'line %06g' 1 {_LINES}
    (while [ -e compose.yaml ]; do echo late; sleep 0.01; done) &
    ;;
*) exec {installed("docker-compose")} "$@" ;;
esac
"""


@pytest.fixture
def own(engine: PrivateEngine, sample_image: str, desk: Desk, tmp_path: Path) -> Iterator[LoneAgent]:
    """Return an enrolled agent with a secret in its environment, not started; its Compose prints a lot."""
    assert sample_image == IMAGE
    compose = tmp_path / "docker-compose"
    compose.write_text(_TALKATIVE)
    compose.chmod(0o755)
    made = LoneAgent(tmp_path / "own", engine, desk)
    more = {"JWT_SECRET": _SECRET, "COMPOSE_PROJECT_NAME": "hijacked", "COMPOSE_FILE": "/etc/passwd"}
    made.process.process.environment |= more
    yield made
    for file in made.apps.rglob("compose.yaml"):
        file.unlink()  # terminates endless output
    if made.process.process.alive:
        made.process.terminate()
    made.clear()


async def test_large_output_is_followed_completely(own: LoneAgent, tmp_path: Path) -> None:
    own.process.process.environment["MOORAGE_COMPOSE"] = str(tmp_path / "docker-compose")
    own.start()
    directory = own.app("talkative", SLEEPER)
    async with own.called() as caller:
        operation_id = await caller.start(UP, directory)
        # A background process of the command keeps printing: the output still ends.
        done = await caller.finish(operation_id)
        assert done.end.exit_code == 0
        assert done.output.splitlines()[:_LINES] == [f"line {n:06d}" for n in range(1, _LINES + 1)]
        await eventually_async(
            lambda: own.output_file(operation_id).stat().st_size > done.end.length, what="somebody who prints on"
        )
        assert (await caller.finish(operation_id)).raw == done.raw


async def test_agent_environment_does_not_reach_app(own: LoneAgent, engine: PrivateEngine) -> None:
    own.start()
    text = f"services: {{web: {{image: '{IMAGE}', init: true, command: 'sleep ${{JWT_SECRET:-1000}}'}}}}\n"
    directory = own.app("clean", text)
    async with own.called() as caller:
        assert (await caller.run(UP, directory)).end.exit_code == 0
        with closing(engine.client()) as client:
            about = client.containers.get("clean-web-1").attrs
        assert about["Config"]["Cmd"] == ["sleep", "1000"]
        assert _SECRET not in json.dumps(about)
        assert (await caller.run(DOWN, directory)).end.exit_code == 0


async def test_app_secrets_are_absent_from_process_list(agent: LoneAgent, caller: Caller) -> None:
    secret = "pa55word-of-the-app"  # noqa: S105 - looked for where it must not be
    directory = agent.app("secretive", None)
    (directory / ".env").write_text(f"PASSWORD={secret}\n")
    (directory / "compose.yaml").write_text(
        f"services:\n  web: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000,"
        " environment: {PASSWORD: $PASSWORD}, healthcheck: {test: [CMD, 'false'], interval: 1s, retries: 2}}\n"
        f"  after: {{image: '{IMAGE}', depends_on: {{web: {{condition: service_healthy}}}}}}\n"
    )
    operation_id = await caller.start(UP, directory)
    following = asyncio.create_task(caller.finish(operation_id))
    looks = 0
    while not following.done():
        commands = _commands()
        looks += any(operation_id.encode() in command for command in commands)
        assert not any(secret.encode() in command for command in commands)
        await asyncio.wait([following], timeout=0.1)
    assert looks
    assert secret not in following.result().output
    # It does reach its own container.
    with closing(docker.APIClient(base_url=agent.engine.host, version="auto")) as client:
        assert f"PASSWORD={secret}" in client.inspect_container("secretive-web-1")["Config"]["Env"]


async def test_full_journal_disk_refuses_start_with_error_code(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("no-room", SLEEPER)
    with covered(agent.data / "operations"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.run(UP, directory)
        assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "journal_full")
        assert "free space" in (refused.value.details() or "")
        assert agent.containers(directory) == {}
    assert (await caller.run(UP, directory)).end.exit_code == 0


async def test_internal_agent_error_is_reported_without_details(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("faulty", SLEEPER)
    done = await caller.run(UP, directory)
    spec = agent.data / "operations" / done.operation_id / "spec"
    # A lone surrogate, which no message can carry.
    spec.write_text(json.dumps({"kind": "up", "cd_path": "/insides/\ud800", "real_directory": str(directory)}))
    with pytest.raises(grpc.aio.AioRpcError) as fault:
        await caller.finish(done.operation_id)
    assert (fault.value.code(), code_of(fault.value)) == (grpc.StatusCode.INTERNAL, "agent_fault")
    assert fault.value.details() == "Something went wrong in the agent: see its log on the host."
    assert "Error" in agent.process.process.log_tail(3)


def _commands() -> list[bytes]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                found.append((folder / "cmdline").read_bytes())
    return found
