"""Isolation between apps that the policy allows: no access to other directories or projects."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from lone_agent import DOWN, UP, Caller, LoneAgent, code_of, compose, entries
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.programs.engine import PrivateEngine
from running_stack import IMAGE, SLEEPER


@pytest.fixture
def stranger(agent: LoneAgent, engine: PrivateEngine, tmp_path: Path) -> Iterator[Path]:
    """Return the directory of a running app outside the agent's roots."""
    assert not tmp_path.is_relative_to(agent.apps)
    directory = tmp_path / "stranger"
    directory.mkdir()
    (directory / "compose.yaml").write_text(SLEEPER)
    compose(engine, directory, "up", "-d")
    yield directory
    compose(engine, directory, "down")


@pytest.fixture
def above(agent: LoneAgent) -> Iterator[Path]:
    """Return a compose file above the agent's root."""
    file = agent.apps.parent / "compose.yaml"
    file.write_text(f"name: above\n{SLEEPER}")
    yield file
    file.unlink()


async def test_last_project_elsewhere_gives_no_control_over_it(
    agent: LoneAgent, caller: Caller, stranger: Path
) -> None:
    directory = agent.app("own-last", SLEEPER)
    last = pb.Project(name="stranger", directory=str(stranger))
    assert (await caller.run(UP, directory, last)).end.exit_code == 0
    done = await caller.run(DOWN, directory, last)
    assert done.end.exit_code == 0
    assert "stranger" not in done.output
    assert agent.containers(directory) == {}
    assert agent.containers(stranger) == {"stranger-web-1": "running"}


async def test_last_project_elsewhere_shows_no_containers_of_it(
    agent: LoneAgent, caller: Caller, stranger: Path
) -> None:
    directory = agent.app("curious-last", None)
    app = pb.App(cd_path=str(directory), last_project=pb.Project(name="stranger", directory=str(stranger)))
    call = caller.stub.Watch(pb.WatchRequest(apps=[app]))
    first = await call.read()
    call.cancel()
    assert isinstance(first, pb.WatchResponse)
    [shown] = first.snapshot.apps
    assert list(shown.containers) == []
    assert not shown.HasField("project")
    assert shown.problem_code == "compose_file_missing"


@pytest.mark.parametrize("name", ["-x", "--rm", "a\nb", "a\0b", "A b", "../x"])
async def test_invalid_last_project_is_ignored(agent: LoneAgent, caller: Caller, name: str) -> None:
    directory = agent.app(f"odd-last-{name.encode().hex()}", SLEEPER)
    await caller.run(UP, directory)
    done = await caller.run(DOWN, directory, pb.Project(name=name, directory=str(directory)))
    assert done.end.exit_code == 0
    assert agent.containers(directory) == {}


async def test_compose_file_above_the_root_is_not_started(agent: LoneAgent, caller: Caller, above: Path) -> None:
    directory = agent.app("nothing-in-it", None)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.run(UP, directory)
    assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.PERMISSION_DENIED, "path_not_allowed")
    assert f"{above.parent} is outside" in (refused.value.details() or "")
    async with caller.watch(directory) as watching:
        shown = watching.apps[str(directory)]
        assert (shown.problem_code, shown.HasField("project")) == ("path_not_allowed", False)


async def test_compose_file_moved_out_of_the_roots_still_lets_the_app_stop(
    agent: LoneAgent, caller: Caller, stranger: Path
) -> None:
    directory = agent.app("moved-out", SLEEPER)
    await caller.run(UP, directory)
    (directory / ".env").write_text(f"COMPOSE_FILE={stranger}/compose.yaml\n")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.run(UP, directory)
    assert code_of(refused.value) == "path_not_allowed"
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}
    assert agent.containers(stranger) == {"stranger-web-1": "running"}


async def test_stop_prints_each_removal_once(agent: LoneAgent, caller: Caller) -> None:
    extra = f"  extra: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000, profiles: [x]}}\n"
    directory = agent.app("once-only", SLEEPER + extra)
    await caller.run(UP, directory)
    agent.compose(directory, "--profile", "x", "up", "-d", "extra")
    agent.compose(directory, "run", "-d", "web", "sleep", "500")
    done = await caller.run(DOWN, directory)
    assert done.end.exit_code == 0
    assert "No resource found" not in done.output
    removed = [entry["id"] for entry in entries(done.output) if entry.get("text") == "Removed"]
    assert len(removed) == len(set(removed))
    assert {"Container once-only-web-1", "Container once-only-extra-1", "Network once-only_default"} <= set(removed)
    assert agent.containers(directory) == {}
