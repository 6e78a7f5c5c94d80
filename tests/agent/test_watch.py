"""The watch of a real agent: a full snapshot first, then each change, without polling."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
from lone_agent import UP, Caller, LoneAgent
from moorage_common.rpc.v1 import agent_pb2 as pb
from running_stack import IMAGE, SLEEPER

HEALTH = f"""\
services:
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sh -c "touch /ok; sleep 1000"
    ports: ["127.0.0.1::8080"]
    healthcheck: {{test: ["CMD", "test", "-f", "/ok"], interval: 1s, retries: 1}}
"""


@pytest.fixture
async def client(agent: LoneAgent) -> AsyncIterator[docker.APIClient]:
    """Return a client of the Engine itself, beside the agent."""
    with closing(docker.APIClient(base_url=agent.engine.host, version="auto")) as made:
        yield made


async def test_snapshot_covers_every_app_and_the_host(agent: LoneAgent, caller: Caller) -> None:
    running, missing, outside = agent.app("shown", HEALTH), agent.apps / "not-there", Path("/etc")
    empty, broken = agent.app("empty", None), agent.app("broken", "servces: {}\n")
    await caller.run(UP, running)
    async with caller.watch(running, missing, outside, empty, broken) as watching:
        problems = {path: app.problem_code for path, app in watching.apps.items()}
        assert problems == {
            str(running): "",
            str(missing): "directory_missing",
            str(outside): "path_not_allowed",
            str(empty): "compose_file_missing",
            str(broken): "compose_file_invalid",
        }
        assert "servces" in watching.apps[str(broken)].problem
        app = watching.apps[str(running)]
        assert app.project == pb.Project(name="shown", directory=str(running))
        (web,) = app.containers
        assert (web.service, web.name, web.image, web.state) == ("web", "shown-web-1", IMAGE, "running")
        assert (web.one_off, web.started_at.seconds > 0, web.HasField("finished_at")) == (False, True, False)
        assert len(web.ports) == 1
        assert web.ports[0].startswith("127.0.0.1:")
        assert web.ports[0].endswith("->8080/tcp")
        host = watching.host
        assert (host.engine_reachable, host.engine_problem) == (True, "")
        # Other containers of the shared Engine count, too.
        assert host.running_containers >= 1
        assert all((host.uptime, host.boot_id, host.engine_version, host.compose_version, host.agent_version))
        info = (await caller.stub.GetInfo(pb.GetInfoRequest())).host
        assert (info.engine_reachable, info.boot_id) == (True, host.boot_id)
        assert info.running_containers >= 1


async def test_watch_sends_each_change_unprompted(agent: LoneAgent, caller: Caller, client: docker.APIClient) -> None:
    directory, other = agent.app("changing", HEALTH), agent.app("other", SLEEPER)
    async with caller.watch(directory, other) as watching:
        assert watching.states(directory) == {}
        await asyncio.to_thread(agent.compose, directory, "up", "-d")

        def is_web(state: str, health: str) -> bool:
            return [(c.state, c.health) for c in watching.apps[str(directory)].containers] == [(state, health)]

        await watching.until(lambda: is_web("running", "healthy"))
        name = watching.apps[str(directory)].containers[0].name
        looked = watching.apps[str(directory)].looked_at
        client.exec_start(client.exec_create(name, "rm /ok")["Id"])
        await watching.until(lambda: is_web("running", "unhealthy"))
        assert watching.apps[str(directory)].looked_at > looked
        await asyncio.to_thread(client.pause, name)
        await watching.until(lambda: watching.states(directory) == {"web": "paused"})
        await asyncio.to_thread(client.unpause, name)
        await asyncio.to_thread(client.kill, name)
        await watching.until(lambda: watching.states(directory) == {"web": "exited"})
        assert watching.apps[str(directory)].containers[0].exit_code == 137
        await asyncio.to_thread(client.rename, name, "changed-name")
        await watching.until(lambda: watching.apps[str(directory)].containers[0].name == "changed-name")
        await asyncio.to_thread(client.remove_container, "changed-name")
        await watching.until(lambda: watching.states(directory) == {})
        assert watching.states(other) == {}


async def test_containers_without_app_count_for_host_only(
    agent: LoneAgent, caller: Caller, client: docker.APIClient
) -> None:
    directory = agent.app("bystander", SLEEPER)
    async with caller.watch(directory) as watching:
        before = watching.host.running_containers
        made = client.create_container(IMAGE, "sleep 1000", host_config=client.create_host_config(init=True))
        try:
            client.start(made)
            await watching.until(lambda: watching.host.running_containers == before + 1)
        finally:
            client.remove_container(made, force=True)
        await watching.until(lambda: watching.host.running_containers == before)
        assert watching.states(directory) == {}


async def test_watch_is_accurate_after_burst_of_changes(
    agent: LoneAgent, caller: Caller, client: docker.APIClient
) -> None:
    service = f"{{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000}}"
    directory = agent.app("storm", "services:\n" + "".join(f"  s{n}: {service}\n" for n in range(6)))
    await caller.run(UP, directory)
    names = sorted(agent.containers(directory))
    dice = random.Random(6)  # noqa: S311 - the same storm each time

    def storm() -> None:
        for _ in range(40):
            name = dice.choice(names)
            state = client.inspect_container(name)["State"]["Status"]
            step = {"running": ("kill", "pause"), "paused": ("unpause",), "exited": ("start",)}[state]
            getattr(client, dice.choice(step))(name)
        client.remove_container(names[0], force=True)

    async with caller.watch(directory) as watching:
        await asyncio.to_thread(storm)
        truth = {name.split("-")[1]: state for name, state in agent.containers(directory).items()}
        assert len(truth) == len(names) - 1
        await watching.until(lambda: watching.states(directory) == truth)


def stir(client: docker.APIClient) -> None:
    """Cause an unrelated event: an agent reads files and policy with each, or after ten seconds."""
    client.remove_container(client.create_container(IMAGE, "true"))


async def test_resolved_problem_is_cleared(agent: LoneAgent, caller: Caller, client: docker.APIClient) -> None:
    directory = agent.app("mended", "servces: {}\n")
    async with caller.watch(directory) as watching:
        assert watching.apps[str(directory)].problem_code == "compose_file_invalid"
        (directory / "compose.yaml").write_text(SLEEPER)
        # Without an event: within the interval of a heartbeat.
        await watching.until(lambda: watching.apps[str(directory)].problem_code == "")
        (directory / "compose.yaml").unlink()
        stir(client)
        await watching.until(lambda: watching.apps[str(directory)].problem_code == "compose_file_missing")


async def test_start_with_changed_files_is_attributed_to_same_app(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("moved", None)
    for place in ("blue", "green"):
        (directory / place).mkdir()
        (directory / place / "c.yaml").write_text(SLEEPER)
    (directory / ".env").write_text("COMPOSE_FILE=blue/c.yaml\n")
    async with caller.watch(directory) as watching:
        (directory / ".env").write_text("COMPOSE_FILE=green/c.yaml\n")
        await asyncio.to_thread(agent.compose, directory, "up", "-d")
        # Name and directory of these containers differ from those at the start of the watch.
        await watching.until(lambda: watching.states(directory) == {"web": "running"}, timeout=5)
        assert watching.apps[str(directory)].project.name == "green"


async def test_app_removed_from_policy_shows_only_refusal(
    agent: LoneAgent, caller: Caller, client: docker.APIClient
) -> None:
    directory = agent.app("expelled", SLEEPER)
    await caller.run(UP, directory)
    policy = agent.data / "policy.toml"
    before = policy.read_text()
    async with caller.watch(directory) as watching:
        assert watching.states(directory) == {"web": "running"}
        policy.write_text("allowed_roots = []\n")
        stir(client)
        try:
            await watching.until(lambda: watching.apps[str(directory)].problem_code == "path_not_allowed")
            assert list(watching.apps[str(directory)].containers) == []
        finally:
            policy.write_text(before)
        stir(client)
        await watching.until(lambda: watching.states(directory) == {"web": "running"})


async def test_concurrent_watches_receive_the_same_state(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("twice-watched", SLEEPER)
    async with agent.called() as other, caller.watch(directory) as first, other.watch(directory) as second:
        await caller.run(UP, directory)
        for watching in (first, second):
            await watching.until(lambda w=watching: w.states(directory) == {"web": "running"})  # type: ignore[misc]  # a lambda's default has no type
        assert first.apps == second.apps
