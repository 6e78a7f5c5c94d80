"""Rigs for the contract of HostTransport: a fake host and two real ones, with direct access to each."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

import docker
from fakes import FakeClock, FakeHost, FakeTransport
from lone_agent import LoneAgent
from moorage_controller.hosts.agent import AgentTransport
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.ssh.session.connection import SshAccess, SshTarget
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import HostTransport
from moorage_lab.hosts.network import free_port
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.programs.sshd import PrivateSshd
from running_stack import IMAGE

QUICK = f"""\
services:
  web:
    image: {IMAGE}
    command: sleep 600
    init: true
"""
SLOW = f"""\
services:
  db:
    image: {IMAGE}
    command: sleep 600
    init: true
    healthcheck:
      test: ["CMD", "test", "-e", "/never"]
      interval: 1s
      retries: 1000
  web:
    image: {IMAGE}
    command: sleep 600
    init: true
    depends_on:
      db: {{condition: service_healthy}}
"""


SAYS = ("one", "two", "red", "  indented", "copy 100%", "é" * 25_000)
TALKER = f"""\
services:
  web:
    image: {IMAGE}
    command:
      - sh
      - -c
      - |
        echo one; sleep 0.1
        echo two >&2; sleep 0.1
        printf '\\033[31mred\\033[0m\\n  indented\\n'
        printf 'copy 10%%\\rcopy 100%%\\r\\n'
        head -c 25000 /dev/zero | tr '\\000' x | sed 's/x/é/g'; echo
        sleep 600
    init: true
    stop_grace_period: 0s
"""
"""Writes SAYS when it is started: to both streams, with a colour, as progress, and longer than the Engine's buffer."""

FEW_SECONDS = SLOW.replace('["CMD", "test", "-e", "/never"]', '["CMD", "test", "-e", "/ready"]').replace(
    "    command: sleep 600", '    command: sh -c "sleep 6; touch /ready; sleep 600"', 1
)
"""A start that takes about six seconds: time to break something in the middle of it."""


class Rig(Protocol):
    """A host, its transport, and direct manipulations by tests."""

    name: str
    transport: HostTransport
    nowhere: HostTransport
    """The way to a host that isn't there."""

    def app(self) -> str:
        """Create an app with one service, `web`; return its directory."""

    def slow_app(self) -> str:
        """Create an app whose `up` doesn't end by itself."""

    def talker(self) -> str:
        """Create an app with one service, `web`, that writes SAYS at its start."""

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""


class FakeRig:
    """A host in memory."""

    name = "agent"

    def __init__(self) -> None:
        clock = FakeClock()
        self.host, lost = FakeHost(), FakeHost()
        lost.reachable = False
        self.transport: HostTransport = FakeTransport(self.host, clock)
        self.nowhere: HostTransport = FakeTransport(lost, clock)

    def app(self) -> str:
        """Create an app with one service, `web`; return its directory."""
        path = f"/srv/{uuid4()}"
        self.host.app(path).services = ("web",)
        return path

    def slow_app(self) -> str:
        """Create an app whose `up` doesn't end by itself."""
        self.host.hold()
        return self.app()

    def talker(self) -> str:
        """Create an app that writes SAYS."""
        path = self.app()
        self.host.app(path).says = SAYS
        return path

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""
        self.host.set_running(cd_path, [])


class AgentRig:
    """A real agent."""

    name = "agent"

    def __init__(self, agent: LoneAgent, channels: AgentChannels) -> None:
        self._agent = agent
        address = agent.process.address
        self.transport: HostTransport = AgentTransport(channels.get(address, agent.name), address)
        absent = f"127.0.0.1:{free_port()}"
        self.nowhere: HostTransport = AgentTransport(channels.get(absent, agent.name), absent)

    def app(self) -> str:
        """Create an app with one service, `web`; return its directory."""
        return str(self._agent.app(str(uuid4()), QUICK))

    def slow_app(self) -> str:
        """Create an app whose `up` doesn't end by itself."""
        return str(self._agent.app(str(uuid4()), SLOW))

    def talker(self) -> str:
        """Create an app that writes SAYS."""
        return str(self._agent.app(str(uuid4()), TALKER))

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""
        client = docker.APIClient(base_url=self._agent.engine.host, version="auto")
        try:
            for name in self._agent.containers(Path(cd_path)):
                client.kill(name)
        finally:
            client.close()


class SshDesk:
    """The controller's side of a host reached by SSH: credentials, and pinned host keys."""

    def __init__(self, sshd: PrivateSshd, login_shell_seconds: float = 5.0) -> None:
        self.sshd = sshd
        self.credentials: SshCredentials | None = SshCredentials(private_key=sshd.key.read_text())
        self.pinned: dict[UUID, str] = {}
        self.pool = SshPool(self._access_of, self._pin, login_shell_seconds=login_shell_seconds)

    def target(self, user: str = "op", server_id: UUID | None = None, port: int | None = None) -> SshTarget:
        """Return the SSH target of a user of the host."""
        server_id = server_id or uuid4()
        return SshTarget(server_id, "127.0.0.1", port or self.sshd.port, user, self.pinned.get(server_id, ""))

    def transport(self, user: str = "op", port: int | None = None) -> SshTransport:
        """Return a transport to the host as that user, over a separate connection."""
        return SshTransport(self.pool.host(self.target(user, port=port)))

    async def _access_of(self, server_id: UUID) -> SshAccess:
        return SshAccess(self.credentials, self.pinned.get(server_id, ""))

    async def _pin(self, target: SshTarget, host_key: str) -> str:
        return self.pinned.setdefault(target.server_id, host_key)


class SshRig:
    """A host behind a real sshd, without an agent."""

    name = "ssh"

    def __init__(self, desk: SshDesk, engine: PrivateEngine, user: str = "op") -> None:
        self._desk = desk
        self._engine = engine
        self.transport: HostTransport = desk.transport(user)
        self.nowhere: HostTransport = desk.transport(user, port=free_port())

    def app(self, compose: str = QUICK) -> str:
        """Create an app with one service, `web`; return its directory."""
        return ssh_app(self._desk.sshd, compose)

    def slow_app(self) -> str:
        """Create an app whose `up` doesn't end by itself."""
        return self.app(SLOW)

    def talker(self) -> str:
        """Create an app that writes SAYS."""
        return self.app(TALKER)

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""
        with closing(docker.APIClient(base_url=self._engine.host, version="auto")) as client:
            for row in client.containers(filters={"label": f"com.docker.compose.project.working_dir={cd_path}"}):
                client.kill(row["Id"])


def ssh_app(sshd: PrivateSshd, compose: str = QUICK, name: str = "") -> str:
    """Create an app's directory that the users of an sshd can read."""
    directory = sshd.apps / (name or str(uuid4()))
    directory.mkdir()
    (directory / "compose.yaml").write_text(compose)
    return str(directory)


def remove_ssh_apps(sshd: PrivateSshd, engine: PrivateEngine) -> None:
    """Remove the containers of the apps of an sshd."""
    label = "com.docker.compose.project.working_dir"
    with closing(docker.APIClient(base_url=engine.host, version="auto")) as client:
        for row in client.containers(all=True, filters={"label": label}):
            if row["Labels"][label].startswith(str(sshd.apps)):
                client.remove_container(row["Id"], force=True)


@contextmanager
def docker_plugin(sshd: PrivateSshd) -> Iterator[None]:
    """Give root's docker its Compose plugin, as the lab's sshd alone sees it."""
    place, plugins = Path("/root/.docker/cli-plugins"), sshd.folder / "plugins"
    place.mkdir(parents=True, exist_ok=True)
    plugins.mkdir(exist_ok=True)
    plugin = plugins / "docker-compose"
    if not plugin.is_symlink():
        plugin.symlink_to(installed("docker-compose"))
    with sshd.bound(plugins, place):
        yield
