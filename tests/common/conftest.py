"""Fixtures for the common package's tests: a real journal in a temporary folder, run by each installed shell."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from moorage_common.journal.journal import Journal, JournalError, Order

SHELLS = ["sh", *(name for name in ("busybox", "bash") if shutil.which(name))]
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
APPLETS = (
    *("flock", "setsid", "sync", "mv", "mkdir", "wc", "dd", "rm", "cat", "sleep", "touch", "env", "printf", "sh"),
    *("head", "tail", "find", "ln", "readlink", "stat", "kill"),
)


@dataclass(frozen=True)
class Shell:
    """A shell in place of /bin/sh: its launcher, and the PATH of its tools."""

    launcher: tuple[str, ...]
    path: str


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that use `every_shell` with each shell."""
    if "every_shell" in metafunc.fixturenames:
        metafunc.parametrize("shell", SHELLS, indirect=True)


@pytest.fixture
def every_shell() -> None:
    """Mark a test that is run with every shell; see pytest_generate_tests."""


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    name: str = getattr(request, "param", "sh")
    if name == "sh":
        return Shell((), SYSTEM_PATH)
    program = shutil.which(name)
    unshare, mount = shutil.which("unshare"), shutil.which("mount")
    assert program is not None
    assert unshare is not None
    assert mount is not None
    replaced = os.path.realpath("/bin/sh")
    script = f'{mount} --bind {program} {replaced} && exec "$@"'
    path = SYSTEM_PATH
    if name == "busybox":
        applets = tmp_path / "applets"
        applets.mkdir()
        known = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in set(APPLETS) & set(known):
            (applets / applet).symlink_to(program)
        path = f"{applets}:{SYSTEM_PATH}"
    return Shell((unshare, "--mount", "/bin/sh", "-c", script, "stand-in"), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the journal's folder."""
    return tmp_path / "journal"


@pytest.fixture
def journal(root: Path, shell: Shell, work: Path) -> Iterator[Journal]:
    """Return a prepared journal whose supervisors run in `shell`; kill leftover commands after the test."""
    journal = Journal(root, launcher=shell.launcher)
    journal.prepare()
    yield journal
    (work / "on").touch()
    for folder in (root / "operations").iterdir():
        with contextlib.suppress(ValueError, JournalError):
            journal.kill(folder.name)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return the directory that commands run in."""
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def order(work: Path, shell: Shell) -> Callable[..., Order]:
    """Return a factory of orders: it takes a script, run in `work` with a new id, and overrides of fields."""

    def make(script: str = "exit 0", **changes: object) -> Order:
        plain = Order(
            operation_id=str(uuid.uuid4()),
            spec={"kind": "up"},
            argv=["/bin/sh", "-c", script],
            environment={"PATH": shell.path, "PWD": str(work)},
            directory=str(work),
            app_directory=str(work),
            project=None,
        )
        return replace(plain, **changes)  # type: ignore[arg-type]  # any field, by name

    return make


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Return a wait for a condition, which fails after `seconds`."""

    async def wait(condition: Callable[[], object], seconds: float = 10) -> None:
        patience = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < patience, "what was waited for did not happen"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a factory of gates: a folder to prepend to PATH, whose tool waits until the file `open` exists.

    Each call of the tool creates the file `arrived` first.
    """
    gates: list[Path] = []

    def make(tool: str) -> Path:
        gate = tmp_path / f"gate-{tool}"
        gate.mkdir()
        gates.append(gate)
        real = shutil.which(tool)
        wrapper = gate / tool
        wait = f"while [ ! -e '{gate}/open' ]; do sleep 0.01; done"
        wrapper.write_text(f"#!/bin/sh\ntrue >'{gate}/arrived'\n{wait}\nexec {real} \"$@\"\n")
        wrapper.chmod(0o755)
        return gate

    yield make
    for gate in gates:
        (gate / "open").touch()


@pytest.fixture
def started_elsewhere() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts Python programs with piped standard output; kill running ones at the end."""
    programs: list[subprocess.Popen[str]] = []

    def start(text: str, *arguments: str) -> subprocess.Popen[str]:
        program = subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.kill()
        program.communicate()
