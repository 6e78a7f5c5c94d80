"""Whole hosts: containers that boot systemd, each with its own sshd, Docker Engine and address."""

import io
import ipaddress
import secrets
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import docker
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool, Mount

from moorage_lab.hosts.host_image import HOST_IMAGE, ensure_host_image
from moorage_lab.hosts.network import free_network, listens
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.images import SAMPLE_IMAGE
from moorage_lab.waiting import eventually

USERS = ("root", "ops", "admin")
"""The users of the fleet's key: root; ops, who may only use Docker; admin, who may become root by sudo."""
_BOOT_SECONDS = 60.0
_CAPABILITIES = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
]
"""All but SYS_RESOURCE, which the machine itself may lack; `--privileged` would request it."""


class HostError(Exception):
    """A command on a host failed; the message is its output."""


class Fleet:
    """Hosts in a network of an Engine, with one SSH key for all; they end with it.

    `cache` keeps the hosts' system between runs.
    """

    def __init__(self, engine: PrivateEngine, folder: Path, cache: Path) -> None:
        self._engine = engine
        self._cache = cache
        self.key = folder / "fleet_key"
        self._client = engine.client()
        self._hosts: list[Host] = []
        self._name = f"moorage-fleet-{secrets.token_hex(3)}"

    def start(self) -> Self:
        """Make the image, the network and the key."""
        ensure_host_image(self._engine, self._cache)
        self._subnet = next(free_network(secrets.randbelow(256)).subnets(new_prefix=24))
        pools = IPAMConfig(pool_configs=[IPAMPool(subnet=str(self._subnet))])
        self._network = self._client.networks.create(self._name, driver="bridge", ipam=pools)
        self.key.parent.mkdir(parents=True, exist_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.key)]
        subprocess.run(argv, check=True)  # noqa: S603  # argv of the lab's own making, no shell
        return self

    def add(self, count: int = 1) -> "list[Host]":
        """Start that many new hosts, and return them when all are up."""
        made = [self._make() for _ in range(count)]
        for host in made:
            host.wait_up()
        return made

    def stop(self) -> None:
        """Stop all hosts, and delete their data."""
        for host in self._hosts:
            host.remove()
        with suppress(docker.errors.DockerException):
            self._network.remove()
        self._client.close()

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _make(self) -> "Host":
        number = len(self._hosts)
        address = self._subnet[number + 10]
        host = Host(self._client, f"{self._name}-{number}", str(self._network.id), address, self.key)
        self._hosts.append(host)
        return host


class Host:
    """One host. Made by `Fleet.add`."""

    def __init__(
        self, client: docker.DockerClient, name: str, network: str, address: ipaddress.IPv4Address, key: Path
    ) -> None:
        self.name = name
        self.address = str(address)
        self.key = key
        self._client = client
        self._network = network
        self._container = self._create()
        self._container.start()
        self._authorize()

    def run(self, *argv: str) -> str:
        """Run a command on it as root and return its output. Raises HostError with that if it fails."""
        code, output = self._container.exec_run(list(argv))
        assert isinstance(output, bytes)
        text: str = output.decode(errors="replace")
        if code:
            raise HostError(f"{' '.join(argv)} ended with code {code}: {text.strip()}")
        return text

    def succeeds(self, *argv: str) -> bool:
        """Return whether a command on it exits with 0."""
        try:
            self.run(*argv)
        except (HostError, docker.errors.APIError):
            return False
        return True

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file on it; make its folder if missing."""
        data = content.encode() if isinstance(content, str) else content
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as tar:
            file = tarfile.TarInfo(path.lstrip("/"))
            file.size, file.mode = len(data), mode
            tar.addfile(file, io.BytesIO(data))
        self._container.put_archive("/", target.getvalue())

    def read(self, path: str) -> bytes:
        """Return the content of a file on it."""
        stream, _ = self._container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            file = tar.extractfile(Path(path).name)
            assert file is not None
            return file.read()

    def wait_up(self) -> None:
        """Wait until it has booted: systemd, sshd, and the Engine with the sample image in it."""
        eventually(lambda: self.succeeds("docker", "version"), timeout=_BOOT_SECONDS, what=f"the Engine of {self.name}")
        eventually(lambda: listens(22, self.address), timeout=_BOOT_SECONDS, what=f"sshd of {self.name}")
        if not self.succeeds("docker", "image", "inspect", SAMPLE_IMAGE):
            changes = ["--change", "ENV PATH=/bin", "--change", 'CMD ["/bin/sh"]']
            self.run("docker", "import", *changes, "/usr/share/moorage/sample.tar", SAMPLE_IMAGE)

    def power_off(self) -> None:
        """Cut its power: no process on it is shut down."""
        self._container.kill()

    def power_on(self) -> None:
        """Boot it after a `power_off`."""
        self._container.start()
        self.wait_up()

    def reboot(self) -> None:
        """Shut it down cleanly, and boot it."""
        self._container.stop(timeout=30)
        self.power_on()

    def cut(self) -> None:
        """Disconnect it from its network."""
        self._client.networks.get(self._network).disconnect(self._container, force=True)

    def join(self) -> None:
        """Connect it to its network again."""
        self._client.networks.get(self._network).connect(self._container, ipv4_address=self.address)

    def remove(self) -> None:
        """Stop it, and delete its data."""
        with suppress(docker.errors.DockerException):
            self._container.remove(force=True, v=True)

    def _create(self) -> Container:
        api = self._client.api
        rights = api.create_host_config(
            cap_drop=["ALL"],
            cap_add=_CAPABILITIES,
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            tmpfs={"/run": "", "/run/lock": "", "/tmp": ""},  # noqa: S108  # the host's own
            cgroupns="host",
            binds=["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
            mounts=[Mount("/var/lib/docker", None)],
            network_mode=self._network,
        )
        # Docker's command line translates `--security-opt systempaths=unconfined` into this.
        rights |= {"MaskedPaths": [], "ReadonlyPaths": []}
        # The type stubs expect one endpoint, but the call expects a mapping by network.
        at = api.create_networking_config(
            {self._network: api.create_endpoint_config(ipv4_address=self.address)}  # type: ignore[arg-type]
        )
        made = api.create_container(
            HOST_IMAGE,
            name=self.name,
            hostname=self.name,
            stop_signal="SIGRTMIN+3",
            host_config=rights,
            networking_config=at,
        )
        container: Container = self._client.containers.get(made["Id"])
        return container

    def _authorize(self) -> None:
        public = self.key.with_suffix(".pub").read_text()
        for user in USERS:
            home = "/root" if user == "root" else f"/home/{user}"
            self.write(f"{home}/.ssh/authorized_keys", public, mode=0o600)
            self._chown(user, home)

    def _chown(self, user: str, home: str) -> None:
        self.run("chown", "-R", f"{user}:{user}", f"{home}/.ssh")
        self.run("chmod", "700", f"{home}/.ssh")
