"""The sweep that ends each stop: a container that can't be removed is reported and doesn't block the others."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from lone_agent import DOWN, UP, Caller, LoneAgent, entries
from moorage_common.compose.output import error_sentence
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from running_stack import IMAGE

_SLEEP = "init: true, stop_grace_period: 0s, command: sleep 1000"
_TWO = f"services:\n  stuck: {{image: '{IMAGE}', {_SLEEP}}}\n  other: {{image: '{IMAGE}', {_SLEEP}}}\n"


class Grip:
    """Makes the Engine's disk refuse the removal of containers."""

    def __init__(self, engine: PrivateEngine) -> None:
        self._engine = engine
        self._held: list[Path] = []

    def hold(self, name: str) -> None:
        """Put a file that can't be removed among a container's."""
        with closing(self._engine.client()) as client:
            identity = client.containers.get(name).id
        file = self._engine.folder / "data" / "containers" / str(identity) / "held"
        file.touch()
        _chattr("+i", file)
        self._held.append(file)

    def release(self) -> None:
        """Release all."""
        while self._held:
            _chattr("-i", self._held.pop())


def _chattr(change: str, file: Path) -> None:
    subprocess.run(["/usr/bin/chattr", change, str(file)], check=True)


@pytest.fixture
def grip(engine: PrivateEngine) -> Iterator[Grip]:
    """Return a grip; release it at the end of the test."""
    made = Grip(engine)
    yield made
    made.release()


def _sweep(agent: LoneAgent, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the sweep alone, in the app's directory, as a stop does."""
    python = Path(installed("moorage-agent")).parent / "python"
    return subprocess.run(
        [str(python), "-I", "-m", "moorage_agent.operations.sweep", "--real-directory", str(directory)],
        cwd=directory,
        env={"DOCKER_HOST": agent.engine.host, "PWD": str(directory), "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_irremovable_container_is_reported_and_others_are_removed(
    agent: LoneAgent, caller: Caller, grip: Grip
) -> None:
    directory = agent.app("held", _TWO)
    assert (await caller.run(UP, directory)).end.exit_code == 0
    grip.hold("held-stuck-1")
    done = await caller.run(DOWN, directory)
    assert done.end.exit_code == 1
    said = error_sentence(done.output) or ""
    assert "still there: held-stuck-1." in said
    assert [c.name for c in done.end.observed.containers] == ["held-stuck-1"]
    assert any(e.get("status") == "Error" and "held-stuck-1" in str(e["id"]) for e in entries(done.output))
    grip.release()
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}


def test_remaining_containers_are_removed_concurrently(agent: LoneAgent) -> None:
    # Four containers that ignore TERM for two seconds each: concurrently, not one after the other.
    service = f"services: {{web: {{image: '{IMAGE}', stop_grace_period: 2s, command: sleep 1000}}}}\n"
    directory = agent.app("together", service)
    agent.compose(directory, "up", "-d", "--scale", "web=4")
    began = time.monotonic()
    done = _sweep(agent, directory)
    took = time.monotonic() - began
    assert (done.returncode, done.stderr) == (0, "")
    removed = [e["id"] for e in entries(done.stdout) if e.get("text") == "Removed"]
    assert sorted(removed) == [f"Container together-web-{n}" for n in range(1, 5)]
    assert took < 7
    assert agent.containers(directory) == {}


def test_sweep_imports_no_code_from_app_directory(agent: LoneAgent) -> None:
    directory = agent.app("imports", None)
    for name in ("docker", "moorage_common", "moorage_agent", "requests"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text("raise SystemExit(77)\n")
    (directory / "json.py").write_text("raise SystemExit(77)\n")
    done = _sweep(agent, directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
