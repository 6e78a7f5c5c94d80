"""Child processes, their records, and waits."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moorage_lab.hosts.network import free_port, listens, port_is_free
from moorage_lab.programs.pids import Pid, descendants
from moorage_lab.programs.processes import Process, ProcessDiedError, plain_environment
from moorage_lab.waiting import NotInTimeError, eventually, eventually_async

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)

Start = Callable[[str], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a Python program as a child; kill running ones at the end."""
    children: list[Process] = []

    def begin(program: str) -> Process:
        child = Process(
            "child", [sys.executable, "-c", program], folder=tmp_path, environment=plain_environment(WORD="given")
        )
        children.append(child)
        child.start()
        return child

    yield begin
    for child in children:
        if child.alive:
            child.kill()


def test_child_sees_only_the_environment_it_is_given(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    child = start("import os; print(os.environ.get('WORD'), os.environ.get('SECRET_OF_OURS'))")
    eventually(lambda: not child.alive)
    assert child.log_tail() == "given None"


def test_wait_reports_process_exit_with_log_tail(start: Start) -> None:
    child = start("raise SystemExit('the disk is on fire')")
    with pytest.raises(ProcessDiedError, match=r"ended with code 1.*\n.*the disk is on fire"):
        child.wait_until(lambda: False, timeout=10, what="never")


def test_wait_timeout_shows_the_log(start: Start) -> None:
    child = start(_STUBBORN)
    child.wait_until(lambda: "ready" in child.log_tail(), timeout=10, what="the word")
    with pytest.raises(NotInTimeError, match=r"the moon didn't come true within 0\.2 s(?s:.*)ready"):
        child.wait_until(lambda: False, timeout=0.2, what="the moon")


def test_process_ignoring_sigterm_is_killed_after_grace_period(start: Start) -> None:
    child = start(_STUBBORN)
    child.wait_until(lambda: "ready" in child.log_tail(), timeout=10, what="the word")
    assert child.terminate(grace=0.2) == -signal.SIGKILL
    assert not child.alive


def test_leftover_process_is_ended_by_next_start(start: Start) -> None:
    first = start("import time; time.sleep(60)")
    left = first.identity
    second = start("import time; time.sleep(60)")
    assert not left.alive
    assert second.alive


def test_stale_pid_record_ends_no_other_process(start: Start, tmp_path: Path) -> None:
    child = start("import time; time.sleep(60)")
    was = child.identity
    Pid(was.id, was.started - 1, was.boot).write(tmp_path / "other.pid")
    other = Process("other", [sys.executable, "-c", ""], folder=tmp_path, environment=plain_environment())
    assert other.end_leftover() is False
    assert child.alive


def test_descendants_are_found_below_a_process(start: Start) -> None:
    child = start("import subprocess; subprocess.run(['/bin/sh', '-c', 'sleep 60 & wait'])")
    eventually(lambda: len(descendants(child.identity)) == 2)
    found = descendants(child.identity)
    child.kill()
    for pid in found:
        pid.end(grace=5)
    assert not any(pid.alive for pid in found)


def test_port_is_free_until_a_process_listens(start: Start) -> None:
    port = free_port()
    assert port_is_free(port)
    start(f"import http.server; http.server.HTTPServer(('127.0.0.1', {port}), None).serve_forever()")
    eventually(lambda: listens(port))
    assert not port_is_free(port)


async def test_wait_treats_errors_as_pending_and_keeps_the_last() -> None:
    calls: Iterator[OSError | str] = iter([OSError("not there"), "", "there"])

    def look() -> str:
        seen = next(calls)
        if isinstance(seen, OSError):
            raise seen
        return seen

    async def look_async() -> str:
        return look()

    assert eventually(look) == "there"
    calls = iter([OSError("not there"), "", "there"])
    assert await eventually_async(look_async) == "there"
    calls = iter([OSError("not there"), "", "there"])
    assert await eventually_async(look) == "there"
    with pytest.raises(NotInTimeError, match="never there"):
        eventually(lambda: _refuse("never there"), timeout=0.1)


def _refuse(why: str) -> None:
    raise OSError(why)
