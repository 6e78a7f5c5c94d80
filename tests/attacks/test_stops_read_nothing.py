"""A stop neither reads nor runs anything in the app's directory."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import docker
import pytest
from lone_agent import compose
from moorage_common.compose.command import down_command
from moorage_common.compose.orders import down_order
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import Container
from moorage_common.docker.states import ContainerState, Project
from moorage_controller.hosts.transport import EndKind
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed, plain_environment
from real_transports import Way
from running_stack import IMAGE, SLEEPER

_SLEEP = "init: true, stop_grace_period: 0s, command: sleep 1000"
_ORDERLY = f"""\
services:
  db: {{image: '{IMAGE}', {_SLEEP}, volumes: ['kept:/kept']}}
  web:
    image: {IMAGE}
    depends_on: [db]
    stop_grace_period: 5s
    command: ["sh", "-c", "trap 'sleep 1; exit 3' TERM; while :; do sleep 0.1; done"]
  extra: {{image: '{IMAGE}', {_SLEEP}, profiles: [x]}}
volumes: {{kept: {{}}}}
networks: {{default: {{name: of-its-own}}}}
"""


def _provider(directory: Path) -> None:
    program = directory / "provider"
    program.write_text(f"#!/bin/sh\ntouch {directory}/ran\n")
    program.chmod(0o755)
    (directory / "compose.yaml").write_text(f"{SLEEPER}  own: {{provider: {{type: {program}}}}}\n")


def _fifo(directory: Path) -> None:
    (directory / "compose.yaml").unlink()
    os.mkfifo(directory / "compose.yaml")


def _fifo_of_settings(directory: Path) -> None:
    os.mkfifo(directory / ".env")


def _gone(directory: Path) -> None:
    shutil.rmtree(directory)


@pytest.mark.parametrize("harm", [_provider, _fifo, _fifo_of_settings, _gone])
async def test_stop_works_and_runs_nothing_from_app_directory(way: Way, harm: Callable[[Path], None]) -> None:
    directory = way.app(SLEEPER)
    directory.chmod(0o777)
    assert (await way.start(directory)).exit_code == 0
    assert list(way.states(directory).values()) == ["running"]
    harm(directory)
    began = time.monotonic()
    end = await way.stop(directory)
    took = time.monotonic() - began
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)
    assert way.states(directory) == {}
    assert not (directory / "ran").exists()
    assert took < 10, "it waited for what the folder holds"


async def test_stop_keeps_the_order_and_the_grace_periods(way: Way) -> None:
    directory = way.app(_ORDERLY)
    name = directory.name
    assert (await way.start(directory)).exit_code == 0
    compose(way.engine, directory, "--profile", "x", "up", "-d", "extra")
    compose(way.engine, directory, "run", "-d", "web")
    assert sorted(way.states(directory).values()) == ["running"] * 4
    (directory / "compose.yaml").unlink()
    with closing(docker.APIClient(base_url=way.engine.host, version="auto")) as client:
        began = time.time()
        assert (await way.stop(directory)).exit_code == 0
        told = {"type": "container", "event": "die", "label": f"com.docker.compose.project={name}"}
        events = client.events(since=int(began), until=int(time.time()) + 1, filters=told, decode=True)
        dead = [event["Actor"]["Attributes"] for event in events if event["timeNano"] > began * 1e9]
        # The Engine may report one exit twice, the second time during the removal of the container.
        deaths = list({each["name"]: each for each in reversed(dead)}.values())[::-1]
        services = [death["com.docker.compose.service"] for death in deaths]
        assert sorted(services) == ["db", "extra", "web", "web"]
        assert services.index("db") > max(n for n, service in enumerate(services) if service == "web")
        assert [d["exitCode"] for d in deaths if d["com.docker.compose.service"] == "web"] == ["3", "3"]
        of_app = {"label": f"com.docker.compose.project={name}"}
        assert client.networks(filters=of_app) == []
        (volume,) = client.volumes(filters=of_app)["Volumes"]
        client.remove_volume(volume["Name"])
    assert way.states(directory) == {}


def test_down_by_name_reads_nothing_in_working_directory(engine: PrivateEngine, tmp_path: Path) -> None:
    # Opening one of these would block.
    for name in ("compose.yaml", "compose.override.yaml", "docker-compose.yml", ".env"):
        os.mkfifo(tmp_path / name)
    done = subprocess.run(
        down_command(installed("docker-compose"), "nobody"),
        cwd=tmp_path,
        env=plain_environment(DOCKER_HOST=engine.host, PWD=str(tmp_path)),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stop_is_run_in_the_root_directory_by_names_alone() -> None:
    identity = AppIdentity("/srv/x", "/srv/x", Project("x", "/srv/x"), Project("old", "/srv/x"))
    others: Mapping[str, str] = {"labelled": "/srv/x", "old": "/srv/y", "--file=x": "/srv/x", "": "/srv/x"}
    containers = [Container(ContainerState("", "", "", "", ""), name, place) for name, place in others.items()]
    order, names = down_order("5b7e2d8c-1f0a-4d44-9a37-0d52a8f0c111", identity, containers, "compose", ["sweep"], {})
    assert names == {"x", "labelled"}
    assert (order.directory, order.environment["PWD"], order.app_directory) == ("/", "/", "/srv/x")
    assert [word for word in order.argv if word.startswith("/srv")] == []
    assert order.argv.count("down") == 2
    with pytest.raises(ValueError, match="lower case"):
        down_command("compose", "--file=x")


async def test_stop_processes_do_not_use_app_directory_as_cwd(by_agent: Way) -> None:
    slow = f"services: {{web: {{image: '{IMAGE}', stop_grace_period: 2s, command: sleep 1000}}}}\n"
    directory = by_agent.app(slow)
    assert (await by_agent.start(directory)).exit_code == 0
    stopping = asyncio.create_task(by_agent.stop(directory))
    seen: set[tuple[str, str]] = set()
    while not stopping.done():
        seen |= _downs(directory.name)
        await asyncio.sleep(0.02)
    assert (await stopping).exit_code == 0
    assert seen == {("/", "PWD=/")}


def _downs(project: str) -> set[tuple[str, str]]:
    """Return working directory and PWD of each running `down` of a project."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if words[0].endswith("docker-compose") and project in words and "down" in words:
                variables = (process / "environ").read_bytes().decode().split("\0")
                found |= {((process / "cwd").readlink().as_posix(), v) for v in variables if v.startswith("PWD=")}
        except (OSError, ValueError):
            continue
    return found
