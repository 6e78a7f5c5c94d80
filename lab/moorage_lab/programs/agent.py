"""A real `moorage-agent` as a child process: enrolled by its own command, then serving."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.engine import Engine
from moorage_lab.programs.processes import Process, Program, installed, plain_environment

_ENROLL_LIMIT = 60.0
_START_LIMIT = 30.0


class AgentProcess(Program):
    """An agent on 127.0.0.1 for one Engine, with all its data in `folder`/data, and its log beside."""

    def __init__(self, folder: Path, engine: Engine, *, allow_roots: Sequence[Path], port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._program = installed("moorage-agent")
        self._data = folder / "data"
        self._allow_roots = list(allow_roots)
        self._environment = plain_environment(DOCKER_HOST=engine.host)
        self.process = Process(
            "agent",
            [self._program, "serve", "--data-dir", str(self._data)],
            folder=folder,
            environment=self._environment,
        )

    def enroll(self, controller_url: str, token: str) -> None:
        """Enrol it with a join token. Raises RuntimeError with the command's output if it fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [self._program, "enroll", "--controller", controller_url, "--token-file", "-"]
        argv += ["--data-dir", str(self._data), "--listen", self.address]
        for root in self._allow_roots:
            argv += ["--allow-root", str(root)]
        done = subprocess.run(  # noqa: S603  # argv of the lab's own making, no shell; the token goes by standard input
            argv,
            input=token,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_ENROLL_LIMIT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"moorage-agent enroll ended with code {done.returncode}: {done.stdout}{done.stderr}")

    def start(self) -> Self:
        """Start it and wait until it listens; it has to be enrolled."""
        self.process.start()
        self.process.wait_until(lambda: listens(self.port), timeout=_START_LIMIT, what=f"the agent at {self.address}")
        return self
