"""A real SSH server on loopback, with its own users, which don't exist on the machine."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.engine import Engine
from moorage_lab.programs.pids import descendants
from moorage_lab.programs.processes import SYSTEM_PATH, Process, plain_environment

_FIRST_UID = 1_000_000
_MOST_USERS = 32
_START_LIMIT = 30.0
_MOUNTED = ("passwd", "group", "shadow", "sudoers")
_LAUNCH = """\
set -e
folder=$1 engine=$2
shift 2
for file in passwd group shadow sudoers; do
    [ ! -e "/etc/$file" ] || mount --bind "$folder/etc/$file" "/etc/$file"
done
mount --bind "$engine" "$folder/engine"
exec "$@"
"""
"""Runs in its own mount namespace: the machine's accounts stay unchanged. The Engine's folder, not its socket, is
mounted, so that the new socket of a restarted Engine is there, too."""


@dataclass(frozen=True, slots=True)
class LabUser:
    """A user who can log in. `docker` grants the Engine's socket; `sudo` is the sudoers rule after the user's name.

    `expired`: the password has to be changed at login.
    """

    name: str
    shell: str = "/bin/bash"
    docker: bool = True
    password: str = ""
    sudo: str = ""
    expired: bool = False


class PrivateSshd:
    """An sshd at 127.0.0.1:`port` for the host of one Engine; all its data is in `folder`.

    `apps` is a directory that its users can read; the private key in the file `key` logs in to each of them. `options`
    are lines of sshd_config; the first one of a keyword counts.
    """

    _package = "openssh-server"

    def __init__(self, folder: Path, engine: Engine, users: Sequence[LabUser], *, options: Sequence[str] = ()) -> None:
        self.folder = folder.resolve()
        self.port = free_port()
        self.users = tuple(users)
        self.options = list(options)
        self.apps = self.folder / "apps"
        self.key = self.folder / "client" / "key"
        self._socket = Path(engine.host.removeprefix("unix://"))
        argv = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _LAUNCH, "moorage-sshd"]
        argv += [str(self.folder), str(self._socket.parent), *self._server()]
        self.process = Process("sshd", argv, folder=self.folder, environment=plain_environment())

    def start(self) -> Self:
        """Start it and wait until it listens; a restart keeps the port and the host key."""
        if not Path(self._server()[0]).exists():
            raise RuntimeError(f"There is no {self._package} on this machine: apt-get install {self._package}.")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
        self._lay_out()
        self.process.start()
        self.process.wait_until(lambda: listens(self.port), timeout=_START_LIMIT, what=f"sshd at port {self.port}")
        return self

    def stop(self) -> None:
        """Stop it with all connections; detached processes started over them continue."""
        if self.process.alive:
            connections = descendants(self.process.identity)
            self.process.terminate()
            for process in connections:
                process.end(grace=2.0)

    def drop_connections(self) -> None:
        """Kill the processes that serve connections, like a crash; sshd itself continues."""
        for process in descendants(self.process.identity):
            if _is_sshd(process.id):
                process.end(grace=0.0)

    @property
    def connections(self) -> int:
        """The number of processes that serve connections now: two each."""
        return sum(_is_sshd(process.id) for process in descendants(self.process.identity))

    @property
    def inside(self) -> list[str]:
        """The start of a command line that runs in its mount namespace."""
        return ["nsenter", "--target", str(self.process.pid), "--mount", "--"]

    @contextmanager
    def bound(self, source: Path, place: Path) -> Iterator[None]:
        """Mount a file or folder over another one, as it and its connections alone see it."""
        inside = self.inside
        subprocess.run([*inside, "mount", "--bind", source, place], check=True)  # noqa: S603 - argv of our own
        try:
            yield
        finally:
            subprocess.run([*inside, "umount", "--lazy", place], check=True)  # noqa: S603 - argv of our own

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Suspend it and all its connections, like a network that drops every packet."""
        processes = [self.process.identity, *(p for p in descendants(self.process.identity) if _is_sshd(p.id))]
        for process in processes:
            process.pause()
        try:
            yield
        finally:
            for process in processes:
                process.go_on()

    def home(self, user: str) -> Path:
        """Return a user's home directory."""
        return self.folder / "home" / user

    def uid(self, user: str) -> int:
        """Return a user's id, unique among concurrent sshds, since tests kill all processes of a user."""
        return _FIRST_UID + self.port * _MOST_USERS + [u.name for u in self.users].index(user)

    def make_host_key(self) -> None:
        """Make a new host key, replacing an existing one; it is used from the next start on."""
        file = self.folder / "host" / "key"
        for old in (file, file.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        _make_key(file)

    @property
    def host_key(self) -> str:
        """The host's public key in the format of known_hosts: type and base64."""
        return " ".join((self.folder / "host" / "key.pub").read_text().split()[:2])

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _server(self) -> list[str]:
        """Return the server's argv."""
        program = shutil.which("sshd", path=SYSTEM_PATH) or "/usr/sbin/sshd"
        return [program, "-D", "-e", "-f", str(self._settings_file)]

    @property
    def _settings_file(self) -> Path:
        return self.folder / "sshd_config"

    def _lay_out(self) -> None:
        for name in ("etc", "engine", "home", "apps", "shells", "client", "host", "authorized"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            _make_key(self.key)
        if not (self.folder / "host" / "key").exists():
            self.make_host_key()
        ash = self.folder / "shells" / "ash"
        if not ash.is_symlink():
            ash.symlink_to("/bin/busybox")
        for user in self.users:
            home, uid = self.home(user.name), self.uid(user.name)
            if not home.exists():
                home.mkdir(mode=0o755)
                shutil.chown(home, uid, uid)
            (self.folder / "authorized" / user.name).write_text(self.key.with_suffix(".pub").read_text())
        for name in _MOUNTED:
            self._write_accounts(name)
        self._settings_file.write_text("\n".join([*self.options, *self._settings(), ""]))

    def _write_accounts(self, name: str) -> None:
        """Write a copy of the machine's own file with our users added."""
        source, file = Path("/etc", name), self.folder / "etc" / name
        lines = source.read_text().splitlines() if source.exists() else []
        if name == "passwd":
            lines += [
                f"{u.name}:x:{self.uid(u.name)}:{self.uid(u.name)}::{self.home(u.name)}:{u.shell}" for u in self.users
            ]
        elif name == "shadow":
            lines += [
                f"{u.name}:{_hash(u.password) if u.password else '*'}:{0 if u.expired else 19000}:0:99999:7:::"
                for u in self.users
            ]
        elif name == "sudoers":
            lines = [line for line in lines if not line.startswith(("@includedir", "#includedir"))]
            lines += ['Defaults env_keep += "DOCKER_HOST"', *(f"{u.name} {u.sudo}" for u in self.users if u.sudo)]
        else:
            members = [u.name for u in self.users if u.docker]
            gid = str(self._socket.stat().st_gid)
            lines = [_with_members(line, gid, members) for line in lines]
            lines += [f"{u.name}:x:{self.uid(u.name)}:" for u in self.users]
        file.unlink(missing_ok=True)
        file.write_text("\n".join([*lines, ""]))
        file.chmod({"shadow": 0o640, "sudoers": 0o440}.get(name, 0o644))

    def _settings(self) -> list[str]:
        return [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host/key",
            f"AuthorizedKeysFile {self.folder}/authorized/%u",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication yes",
            "PermitRootLogin no",
            f"SetEnv DOCKER_HOST=unix://{self.folder}/engine/{self._socket.name}",
        ]


class PrivateDropbear(PrivateSshd):
    """Another SSH server: it has no sftp, no forwarding of Unix sockets, and no options."""

    _package = "dropbear-bin"

    def _server(self) -> list[str]:
        program = shutil.which("dropbear", path=SYSTEM_PATH) or "/usr/sbin/dropbear"
        return [program, "-F", "-E", "-m", "-p", f"127.0.0.1:{self.port}", "-r", str(self.folder / "host" / "dropbear")]

    def _lay_out(self) -> None:
        super()._lay_out()
        key = self.folder / "host" / "dropbear"
        if not key.exists():
            argv = ["dropbearkey", "-t", "ed25519", "-f", str(key)]
            subprocess.run(argv, check=True, capture_output=True, env=plain_environment())  # noqa: S603 - argv of our own
        for user in self.users:
            home, uid = self.home(user.name), self.uid(user.name)
            (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
            (home / ".ssh" / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
            (home / ".bashrc").write_text(f"export DOCKER_HOST=unix://{self.folder}/engine/{self._socket.name}\n")
            for place in (home / ".ssh", home / ".ssh" / "authorized_keys"):
                shutil.chown(place, uid, uid)


def _is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:
        return False


def _with_members(line: str, gid: str, members: Sequence[str]) -> str:
    fields = line.split(":")
    if fields[2] != gid:
        return line
    return ":".join([*fields[:3], ",".join([*filter(None, fields[3].split(",")), *members])])


def _make_key(file: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
    subprocess.run(argv, check=True, capture_output=True, env=plain_environment())  # noqa: S603 - argv of our own


def _hash(password: str) -> str:
    argv = ["openssl", "passwd", "-6", "-stdin"]
    done = subprocess.run(argv, input=password, check=True, capture_output=True, text=True, env=plain_environment())  # noqa: S603 - argv of our own
    return done.stdout.strip()
