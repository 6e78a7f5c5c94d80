"""A private PostgreSQL server: in its own folder, on a free port of 127.0.0.1, without fsync."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self
from urllib.parse import quote

from moorage_lab.hosts.network import free_port
from moorage_lab.programs.processes import GRACE, Process, plain_environment

_SUPERUSER = "moorage"
_NOT_ROOT = ("postgres", "nobody")
"""The user who runs it if we are root, the first existing one: PostgreSQL refuses to run as root."""
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "fsync=off",
    # It would write at unpredictable times.
    "autovacuum=off",
)
_START_LIMIT = 30.0


class PrivatePostgres:
    """A server that ends with the thread that started it at the latest; its port stays the same across restarts.

    The folders above `folder` must be world-searchable (x): if we are root, the server runs as another user. Raises
    RuntimeError if PostgreSQL is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._data = folder / "data"
        self._programs = _programs()
        argv = [*_as_another(), str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for setting in _SETTINGS:
            argv += ["-c", setting]
        self.process = Process("postgres", argv, folder=folder, environment=plain_environment())

    def start(self) -> None:
        """Start it, the first time with an empty cluster, and return when it accepts connections."""
        if not self._data.exists():
            self._initialize()
        self.process.start()
        self.process.wait_until(self.answers, timeout=_START_LIMIT, what="an answer of PostgreSQL")

    def stop(self) -> None:
        """Stop it in fast mode: clients are disconnected, committed data is written."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does: immediately, with recovery at the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        if not self.process.alive:
            return
        identity = self.process.identity
        identity.send(how)
        if not identity.gone_within(GRACE):
            self.process.kill()

    def answers(self) -> bool:
        """Return whether it accepts connections."""
        argv = [str(self._programs / "pg_isready"), "--quiet", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(argv, env=plain_environment(), check=False).returncode == 0  # noqa: S603  # no shell

    def url(self, database: str) -> str:
        """Return a database's URL in the format of DATABASE_URL."""
        return f"postgresql://{_SUPERUSER}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str = "template0") -> str:
        """Create a database as a copy of another, which must have no connections; return its URL."""
        self.run("createdb", "--template", template, "--strategy", "file_copy", name)
        return self.url(name)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's client programs on this server; return its output."""
        argv = [str(self._programs / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", _SUPERUSER, *arguments]
        done = subprocess.run(  # noqa: S603  # argv of the lab's own making, no shell
            argv, env=plain_environment(), check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def _initialize(self) -> None:
        self._data.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            shutil.chown(self._data, _another())
        options = ["--auth=trust", f"--username={_SUPERUSER}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        argv = [*_as_another(), str(self._programs / "initdb"), "-D", str(self._data), *options]
        # In a folder that the other user can access, unlike possibly our current one.
        subprocess.run(argv, env=plain_environment(), cwd="/", check=True, capture_output=True, timeout=120)  # noqa: S603  # no shell

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def _programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs; Debian doesn't put the server's on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError("There is no PostgreSQL here: run `sh lab/system-packages.sh postgresql`.")
    return Path(on_path).resolve().parent


def _another() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _NOT_ROOT if name in names)


def _as_another() -> list[str]:
    """Return the prefix of a command that ends it with its parent, and runs it as another user if we are root."""
    prefix = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return prefix
    account = pwd.getpwnam(_another())
    return [*prefix, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
