"""Docker Engines: the running one of this machine, and private ones isolated from it."""

import ipaddress
import json
import os
import shutil
import signal
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import docker
import requests

from moorage_lab.hosts.firewall import allow, disallow
from moorage_lab.hosts.leftovers import bridges_of, end_containers, unmount_all
from moorage_lab.hosts.network import free_network, make_bridge, remove_bridge
from moorage_lab.programs.pids import descendants
from moorage_lab.programs.processes import SYSTEM_PATH, Process, plain_environment

_DEFAULT_HOST = "unix:///var/run/docker.sock"
_LONGEST_FOLDER = 48
"""A socket's path is limited to 107 bytes, and the Engine puts some five folders deep."""
_START_LIMIT = 60.0
_STOP_LIMIT = 15.0


class Engine:
    """A running Docker Engine. `host` is its address in the format of DOCKER_HOST."""

    def __init__(self, host: str) -> None:
        self.host = host

    def client(self) -> docker.DockerClient:
        """Return a new client of the Docker SDK; close it, or use it in a `with contextlib.closing(...)`."""
        return docker.DockerClient(base_url=self.host, timeout=60)

    def answers(self) -> bool:
        """Return whether it answers now."""
        try:
            client = docker.DockerClient(base_url=self.host, timeout=5)
        except docker.errors.DockerException:
            return False
        try:
            return bool(client.ping())
        except (docker.errors.DockerException, requests.RequestException, OSError):
            return False
        finally:
            client.close()


def find_engine() -> Engine | None:
    """Return the Engine that answers at DOCKER_HOST or the default socket, None if there is none.

    Only local ones count: an app's files have to be on the machine of its Engine.
    """
    for host in (os.environ.get("DOCKER_HOST", _DEFAULT_HOST), _DEFAULT_HOST):
        if host.startswith("unix://") and Engine(host).answers():
            return Engine(host)
    return None


class PrivateEngine(Engine):
    """A private dockerd and containerd, with all their data and logs in one folder.

    It shares nothing with other Engines: it has its own bridge instead of docker0, its own range of addresses, and
    its own firewall chain (bridge and chain are called `name`). Published ports work (by docker-proxy), and so do
    networks between containers; `outside` opens the way from containers to other machines as well.
    """

    def __init__(self, folder: Path, *, outside: bool = False) -> None:
        self.folder = folder.resolve()
        tag = zlib.crc32(str(self.folder).encode())
        self.name = f"mrg{tag:08x}"
        self._seed = tag & 0xFF
        short = len(str(self.folder)) <= _LONGEST_FOLDER
        self._run = self.folder / "run" if short else Path(f"/run/moorage-{tag:08x}")
        self._outside = outside
        self._pools: list[dict[str, object]] = []
        super().__init__(f"unix://{self._run}/docker.sock")
        self._containerd = self._process("containerd", ["--config", str(self.folder / "containerd.toml")])
        self._dockerd = self._process("dockerd", self._dockerd_options())

    def start(self) -> Self:
        """Start it and wait until it answers. Leftovers of a killed run are cleaned up first."""
        self._refuse_without_programs()
        if not self._containerd.alive:
            self._clean_up()
            for place in (self.folder, self._run):
                place.mkdir(parents=True, exist_ok=True)
            (self.folder / "containerd.toml").write_text(self._containerd_settings())
            self._make_network()
            self._containerd.start()
            socket = self._run / "containerd.sock"
            self._containerd.wait_until(socket.is_socket, timeout=_START_LIMIT, what="containerd's socket")
        end_containers(self._run / "containerd.sock")  # like a dockerd without live-restore after a crash
        self._configure(live_restore=True)
        self._dockerd.start()
        self._dockerd.wait_until(self.answers, timeout=_START_LIMIT, what="an answer of dockerd")
        self._configure(live_restore=False)
        self._dockerd.identity.send(signal.SIGHUP)
        self._dockerd.wait_until(self._is_configured, timeout=_START_LIMIT, what="dockerd's reload of its settings")
        return self

    def stop(self, *, patience: float = 0.0) -> None:
        """Stop it with all its containers, which have `patience` seconds of grace. Its folder stays."""
        if self._dockerd.alive:
            self.go_on()  # a suspended one doesn't handle TERM
            if not patience:
                self._kill_containers()
            self._end_dockerd(lambda: self._dockerd.terminate(grace=patience or _STOP_LIMIT))
        end_containers(self._run / "containerd.sock")
        if self._containerd.alive:
            self._containerd.terminate()
        self._clean_up()

    def kill(self) -> None:
        """Kill dockerd, like a crash: containers keep running, until `start` starts it again."""
        self._end_dockerd(self._dockerd.kill)

    def hang(self) -> None:
        """Suspend dockerd, while its containers keep running, until `go_on`."""
        self._dockerd.identity.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume dockerd after a `hang`."""
        self._dockerd.identity.send(signal.SIGCONT)

    def restart(self) -> None:
        """Restart dockerd as an upgrade does: it stops its containers, and restarts those by their restart policy."""
        self._end_dockerd(lambda: self._dockerd.terminate(grace=_STOP_LIMIT))
        self.start()

    def remove(self) -> None:
        """Stop it, and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of dockerd's log."""
        return self._dockerd.log_tail(lines)

    @property
    def alive(self) -> bool:
        """Whether both of its processes run."""
        return self._dockerd.alive and self._containerd.alive

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _process(self, name: str, options: list[str]) -> Process:
        path = shutil.which(name, path=SYSTEM_PATH) or name
        return Process(name, [path, *options], folder=self.folder, environment=plain_environment())

    def _make_network(self) -> None:
        network = free_network(self._seed)
        first = next(network.subnets(new_prefix=24))
        make_bridge(self.name, ipaddress.IPv4Interface((first[1], first.prefixlen)))
        allow(self.name, network, outside=self._outside)
        self._pools = [{"base": str(network), "size": first.prefixlen}]

    def _configure(self, *, live_restore: bool) -> None:
        """Write dockerd's settings; without live-restore, one with its own address pools deletes docker0 first."""
        settings = {"default-address-pools": self._pools, "live-restore": live_restore}
        (self.folder / "daemon.json").write_text(json.dumps(settings))

    def _is_configured(self) -> bool:
        with closing(self.client()) as client:
            return not client.info()["LiveRestoreEnabled"]

    def _dockerd_options(self) -> list[str]:
        return [
            f"--config-file={self.folder}/daemon.json",  # not the machine's /etc/docker/daemon.json
            f"--data-root={self.folder}/data",
            f"--exec-root={self._run}",
            f"--pidfile={self._run}/dockerd.pid",
            f"--host={self.host}",
            f"--containerd={self._run}/containerd.sock",  # not the machine's, dockerd's default
            f"--bridge={self.name}",
            "--iptables=false",
            "--ip6tables=false",
            f"--ip-forward={str(self._outside).lower()}",
        ]

    def _containerd_settings(self) -> str:
        return f"""\
version = 2
root = "{self.folder}/containerd"
state = "{self._run}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
                    "io.containerd.nri.v1.nri"]
[grpc]
address = "{self._run}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.folder}/opt"
"""

    def _refuse_without_programs(self) -> None:
        if os.geteuid() != 0:
            raise RuntimeError("A private Docker Engine can be started by root only; run this as root.")
        for name in ("dockerd", "containerd"):
            if shutil.which(name, path=SYSTEM_PATH) is None:
                raise RuntimeError(
                    f"There is no {name} on this machine; on Debian or Ubuntu: apt-get install docker.io."
                )

    def _kill_containers(self) -> None:
        with closing(self.client()) as client:
            for container in client.containers.list(ignore_removed=True):
                with suppress(docker.errors.APIError):  # it has ended by itself
                    if container.status == "paused":
                        container.unpause()
                    container.kill()

    def _end_dockerd(self, end: Callable[[], int]) -> None:
        proxies = descendants(self._dockerd.identity)
        end()
        for proxy in proxies:
            proxy.end(grace=_STOP_LIMIT)

    def _clean_up(self) -> None:
        """End a leftover dockerd and containerd of an earlier run, and remove everything they left."""
        self._dockerd.end_leftover()
        end_containers(self._run / "containerd.sock")
        self._containerd.end_leftover()
        for place in (self._run, self.folder):
            unmount_all(place)
        for bridge in (self.name, *bridges_of(self.folder / "data")):
            remove_bridge(bridge)
        disallow(self.name)
        shutil.rmtree(self._run, ignore_errors=True)
