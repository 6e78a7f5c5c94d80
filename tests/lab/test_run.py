"""`make run` as a person uses it: started, used, interrupted, killed, started again."""

import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moorage_lab.api import Api
from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.pids import descendants
from moorage_lab.programs.processes import Process, plain_environment
from moorage_lab.waiting import eventually

Start = Callable[[], Process]


@pytest.fixture
def folder(engine_folder: Path) -> Path:
    """Return a folder for one test's runs, with a path short enough for sockets."""
    return Path(tempfile.mkdtemp(prefix="run-", dir=engine_folder))


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Return a function that starts runs in one folder, on their own ports, with no Engine in DOCKER_HOST."""
    environment = plain_environment(
        PORT=str(free_port()), AGENT_PORT=str(free_port()), DOCKER_HOST=f"unix://{os.devnull}", PYTHONUNBUFFERED="1"
    )
    run = Process("run", _command_line(folder), folder=folder, environment=environment)

    def begin() -> Process:
        run.log.unlink(missing_ok=True)
        run.start()
        return run

    yield begin
    if run.alive:
        run.terminate(grace=30)


def _command_line(folder: Path) -> list[str]:
    return [sys.executable, "-m", "moorage_lab.run", str(folder)]


def _until_ready(run: Process) -> tuple[str, str, Api]:
    """Wait for the printed instructions; return the app's API path, its page, and the API as the admin."""
    run.wait_until(lambda: "Ctrl-C ends it all" in run.log_tail(), timeout=90, what="what to type next")
    text = run.log.read_text()
    url, page = (_first(pattern, text) for pattern in (r"Moorage runs at (\S+)", r"sample app +(\S+)"))
    login = json.loads(Path(_first(r"-d @(\S+)", text)).read_text())
    api = Api(url).login(login["username"], login["password"])
    return _first(r"(/api/apps/[0-9a-f-]+)/start", text), page, api


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in:\n{text}"
    return match[1]


def _start_number(page: str) -> str:
    return _first(r"start number (\d+)", str(Api(page).get("/").expect(200)))


def test_make_run_runs_sample_app_and_cleans_up(start: Start) -> None:
    run = start()
    app, page, api = _until_ready(run)
    started = api.post(f"{app}/start", {"timeout": 2}).expect(200)
    assert started["status"] == "running"
    assert eventually(lambda: _start_number(page)) == "1"
    eventually(lambda: api.get(app).expect(200)["health"] == "healthy", timeout=20)
    children = descendants(run.identity)
    assert children

    assert run.terminate(grace=20) == 0
    assert not any(child.alive for child in children)
    assert not listens(int(page.rpartition(":")[2]))

    app_again, page, api = _until_ready(start())
    assert app_again == app
    assert api.get(app).expect(200)["status"] == "stopped"
    api.post(f"{app}/start", {"timeout": 2}).expect(200)
    assert eventually(lambda: _start_number(page)) == "2"


def test_make_run_removes_leftovers_of_killed_run(start: Start) -> None:
    run = start()
    app, page, api = _until_ready(run)
    api.post(f"{app}/start", {"timeout": 2}).expect(200)
    eventually(lambda: _start_number(page))
    left = descendants(run.identity)
    run.kill()
    assert any(pid.alive for pid in left)

    again = start()
    same_app, page, api = _until_ready(again)
    assert same_app == app
    assert not any(pid.alive for pid in left)
    api.post(f"{app}/start", {"timeout": 2}).expect(200)
    again.identity.send(signal.SIGINT)
    eventually(lambda: not again.alive, timeout=20)
    assert again.exit_code == 0


def test_make_run_ends_with_reason_when_a_part_dies(start: Start) -> None:
    run = start()
    _until_ready(run)
    controller = next(pid for pid in descendants(run.identity) if "moorage-controller" in _command(pid.id))
    controller.send(signal.SIGKILL)
    eventually(lambda: not run.alive, timeout=20)
    assert run.exit_code == 1
    assert "controller ended with code -9" in run.log.read_text()


def _command(number: int) -> str:
    return Path(f"/proc/{number}/cmdline").read_text()


def test_make_run_refuses_busy_port_with_a_sentence(start: Start, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = Process(
            "busy",
            _command_line(folder),
            folder=folder,
            environment=plain_environment(PORT=str(port), DOCKER_HOST=f"unix://{os.devnull}"),
        )
        other.start()
        eventually(lambda: not other.alive, timeout=30)
    assert other.exit_code == 1
    assert f"Port {port} of 127.0.0.1 is in use by another program" in other.log_tail()
    assert "PORT=NUMBER make run" in other.log_tail()
    assert start().alive


def test_second_make_run_in_same_folder_is_refused(start: Start, folder: Path) -> None:
    first = start()
    first.wait_until(first.log_tail, timeout=30, what="a first word")
    second = Process(
        "second",
        _command_line(folder),
        folder=folder,
        environment=plain_environment(DOCKER_HOST=f"unix://{os.devnull}"),
    )
    second.start()
    eventually(lambda: not second.alive, timeout=30)
    assert second.exit_code == 1
    assert "Another `make run` is running" in second.log_tail()
    assert first.alive
