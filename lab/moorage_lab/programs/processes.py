"""A real child process with a log, a record of its id, and waits that detect its end."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from moorage_lab.programs.pids import Pid
from moorage_lab.waiting import NotInTimeError, eventually

T = TypeVar("T")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE = 10.0
"""Seconds of grace after TERM."""


class ProcessDiedError(RuntimeError):
    """A process ended during a wait for it; the message has the end of its log."""


class Process:
    """A program run as a child in its own session: a Ctrl-C on the terminal reaches it only through us.

    `folder` gets NAME.log (appended to) and NAME.pid (the running process, for a clean-up after our own crash).
    """

    def __init__(self, name: str, argv: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.argv = list(argv)
        self.environment = dict(environment)
        self.log = folder / f"{name}.log"
        self._record = folder / f"{name}.pid"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, after ending a leftover process of an earlier run."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already.")
        self.end_leftover()
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603  # argv of the lab's own making, no shell
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        self.identity.write(self._record)

    def end_leftover(self) -> bool:
        """End the leftover process of a killed run; return whether there was one."""
        left = Pid.read(self._record)
        found = left is not None and left.alive
        if left is not None and found:
            left.end(grace=GRACE)
        self._record.unlink(missing_ok=True)
        return found

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError before the first start."""
        return self._started().pid

    @property
    def identity(self) -> Pid:
        """Its id and start time. Raises RuntimeError if it has ended and was reaped."""
        identity = Pid.of(self.pid)
        if identity is None:
            raise RuntimeError(f"{self.name} has ended.")
        return identity

    @property
    def exit_code(self) -> int | None:
        """Its exit code (negative: the signal); None while it runs."""
        return self._started().poll()

    def wait_until(self, check: Callable[[], T | None], *, timeout: float, what: str) -> T:
        """Wait for a condition of the process, as `eventually` does. Raises ProcessDiedError if it ends first."""

        def alive_and_ready() -> T | None:
            if not self.alive:
                raise ProcessDiedError(self.death)
            return check()

        try:
            return eventually(alive_and_ready, timeout=timeout, what=what)
        except NotInTimeError as error:
            raise NotInTimeError(f"{error}\nThe end of {self.name}'s log:\n{self.log_tail()}") from error

    @property
    def death(self) -> str:
        """A readable message with its exit code and the end of its log."""
        return f"{self.name} ended with code {self.exit_code}. The end of {self.log}:\n{self.log_tail()}"

    def terminate(self, *, grace: float = GRACE) -> int:
        """Stop it with TERM, then KILL after `grace` seconds. Return its exit code."""
        child = self._started()
        child.terminate()
        try:
            code = child.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._record.unlink(missing_ok=True)
        return code

    def kill(self) -> int:
        """Kill it with KILL, like a crash. Return its exit code."""
        child = self._started()
        child.kill()
        code = child.wait()
        self._record.unlink(missing_ok=True)
        return code

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started.")
        return self._child


class Program(ABC):
    """A program in a process of its own; it can be started again with the same data and port."""

    process: Process

    @abstractmethod
    def start(self) -> Self:
        """Start it and wait until it is ready."""

    def terminate(self) -> int:
        """Stop it with TERM; return its exit code."""
        return self.process.terminate()

    def kill(self) -> None:
        """Kill it, like a crash."""
        self.process.kill()

    def restart(self) -> Self:
        """Stop it, if it still runs, and start it again."""
        if self.process.alive:
            self.terminate()
        return self.start()

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self.process.alive:
            self.terminate()


def installed(program: str) -> str:
    """Return the path of a program that is installed beside the Python that runs this.

    Raises RuntimeError if it isn't.
    """
    path = Path(sys.executable).parent / program
    if not path.exists():
        raise RuntimeError(f"{program} is not installed beside {sys.executable}; run `make install`.")
    return str(path)


def plain_environment(**more: str) -> dict[str, str]:
    """Return an environment without the caller's settings: only PATH and the like, and `more`."""
    return {"PATH": SYSTEM_PATH, "HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8", **more}
