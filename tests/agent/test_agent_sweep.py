"""The sweep, at the end of each stop: one container that can't go is told, and keeps no other."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from lone_agent import DOWN, UP, Caller, LoneAgent, entries
from moorage_common.compose_output import error_sentence
from moorage_lab.engine import PrivateEngine
from moorage_lab.processes import installed
from stack import IMAGE

_SLEEP = "init: true, stop_grace_period: 0s, command: sleep 1000"
_TWO = f"services:\n  stuck: {{image: '{IMAGE}', {_SLEEP}}}\n  other: {{image: '{IMAGE}', {_SLEEP}}}\n"


@pytest.fixture
def hold(engine: PrivateEngine) -> Iterator[Callable[[str], None]]:
    """Return what makes the Engine's own disk refuse to give a container up, until the end of the test."""
    held: list[Path] = []

    def hold(name: str) -> None:
        with closing(engine.client()) as client:
            identity = client.containers.get(name).id
        file = engine.folder / "data" / "containers" / str(identity) / "held"
        file.touch()
        subprocess.run(["/usr/bin/chattr", "+i", str(file)], check=True)
        held.append(file)

    yield hold
    for file in held:
        if file.exists():
            subprocess.run(["/usr/bin/chattr", "-i", str(file)], check=True)


async def test_a_container_that_can_not_go_is_told_and_keeps_no_other(
    agent: LoneAgent, caller: Caller, engine: PrivateEngine, hold: Callable[[str], None]
) -> None:
    directory = agent.app("held", _TWO)
    assert (await caller.run(UP, directory)).end.exit_code == 0
    hold("held-stuck-1")
    done = await caller.run(DOWN, directory)
    assert done.end.exit_code == 1
    assert "still there: held-stuck-1" in (error_sentence(done.output) or "")
    assert "held-other-1" not in (error_sentence(done.output) or "")
    assert [c.name for c in done.end.observed.containers] == ["held-stuck-1"]
    assert any(e.get("status") == "Error" and "held-stuck-1" in str(e["id"]) for e in entries(done.output))
    with closing(engine.client()) as client:
        identity = client.containers.get("held-stuck-1").id
    file = engine.folder / "data" / "containers" / str(identity) / "held"
    subprocess.run(["/usr/bin/chattr", "-i", str(file)], check=True)
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}


async def test_what_compose_leaves_goes_all_at_once(agent: LoneAgent, caller: Caller) -> None:
    # Four one-off containers that ignore TERM for their two seconds: together, not one after the other.
    service = f"services: {{web: {{image: '{IMAGE}', stop_grace_period: 2s, command: sleep 1000}}}}\n"
    directory = agent.app("together", service)
    for _ in range(4):
        agent.compose(directory, "run", "-d", "web")
    (directory / "compose.yaml").write_text("services: {\n")  # by name alone
    began = time.monotonic()
    done = await caller.run(DOWN, directory)
    assert done.end.exit_code == 0
    assert time.monotonic() - began < 7
    assert agent.containers(directory) == {}


def test_the_sweep_reads_nothing_of_the_directory_it_runs_in(agent: LoneAgent, tmp_path: Path) -> None:
    for name in ("docker", "moorage_common", "moorage_agent", "requests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(77)\n")
    (tmp_path / "json.py").write_text("raise SystemExit(77)\n")
    argv = [str(Path(installed("moorage-agent")).parent / "python"), "-I", "-m", "moorage_agent.sweep"]
    done = subprocess.run(
        [*argv, "--real-directory", str(tmp_path)],
        cwd=tmp_path,
        env={"DOCKER_HOST": agent.engine.host, "PWD": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
