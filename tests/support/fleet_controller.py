"""A controller beside a fleet of hosts, with the calls of an admin."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moorage_lab.api import Api
from moorage_lab.hosts.host import Fleet, Host
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.waiting import eventually

OLD = "0.0.9"
BROKEN = "9.9.9-deadbeef"
_SKIPPED = ("/proc", "/sys", "/run", "/tmp", "/var/log", "/var/lib/docker", "/root/.local")  # noqa: S108 - of a host
_LISTING = f"find / -xdev {' '.join(f'-path {path} -prune -o' for path in _SKIPPED)} -print | sort"
"""All files of a host but what changes by itself, and what SSH without an agent needs."""


class Desk:
    """A controller process with an agent's bundle to install. `use` selects another bundle, and restarts it."""

    def __init__(self, folder: Path, fleet: Fleet, bundles: Path) -> None:
        self.folder = folder
        self.fleet = fleet
        self.bundle = folder / "bundle.tar.gz"
        self._bundles = bundles
        environment = {"RATE_LIMIT_PER_MINUTE": "0", "MOORAGE_AGENT_BUNDLE": str(self.bundle)}
        self.controller = ControllerProcess(folder / "controller", environment=environment)
        self.project_id = ""
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        """The REST API as the admin."""
        if self._api is None:
            self._api = self.controller.admin()
        return self._api

    def start(self) -> None:
        """Start the controller with this tree's own bundle."""
        self.use(version("moorage-agent"))
        self.controller.start()
        self.project_id = self.api.post("/api/projects", {"name": "fleet"}).expect(201)["id"]

    def stop(self) -> None:
        """End it."""
        if self.controller.process.alive:
            self.controller.terminate()

    def use(self, release: str) -> str:
        """Select another bundle for installations, and return its build."""
        found = self._bundles / f"moorage-agent-{release}-linux-x86_64.tar.gz"
        self._put(found.read_bytes())
        with tarfile.open(found) as tar:
            first = tar.next()
        assert first is not None
        return first.name

    def use_broken(self, build: str) -> None:
        """Select a bundle whose service exits immediately; all other commands are delegated to `build`."""
        program = (
            f"#!/bin/sh\ncase $1 in --version) echo 'moorage-agent {BROKEN}' ;; serve) echo 'It is broken.'; exit 3 ;; "
            f'*) exec /opt/moorage-agent/{build}/moorage-agent "$@" ;; esac\n'
        )
        with tarfile.open(self._bundles / f"moorage-agent-{version('moorage-agent')}-linux-x86_64.tar.gz") as tar:
            first = tar.next()
            assert first is not None
            unit = tar.extractfile(f"{first.name}/moorage-agent.service")
            assert unit is not None
            service = unit.read()
        files = {"moorage-agent": program.encode(), "VERSION": f"{BROKEN}\n".encode(), "moorage-agent.service": service}
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as tar:
            folder = tarfile.TarInfo(BROKEN)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            for name, data in {**files, "SHA256SUMS": sums.encode()}.items():
                file = tarfile.TarInfo(f"{BROKEN}/{name}")
                file.size, file.mode = len(data), 0o755
                tar.addfile(file, io.BytesIO(data))
        self._put(target.getvalue())

    def add_server(self, host: Host, user: str = "root") -> str:
        """Register a host, to be reached by SSH; returns the server's id."""
        body = {"name": host.name, "address": host.address, "sshUser": user, "sshPrivateKey": host.key.read_text()}
        return str(self.api.post("/api/servers", body).expect(201)["id"])

    def install(self, server_id: str, **body: object) -> Any:  # noqa: ANN401 - JSON
        """Install or upgrade the agent, and return the reply."""
        return self.api.post(f"/api/servers/{server_id}/agent", body).expect(200)

    def begin_install(self, server_id: str) -> str:
        """Begin an installation, and return its operation's id."""
        reply = self.api.post(f"/api/servers/{server_id}/agent", headers={"Prefer": "respond-async"})
        return str(reply.expect(202)["id"])

    def member(self, fleet: Fleet, user: str = "root") -> tuple[Host, str]:
        """Return a new host with an agent, and its server's id."""
        host = fleet.add()[0]
        server_id = self.add_server(host, user)
        self.install(server_id, allowRoots=["/srv"])
        return host, server_id

    def server(self, server_id: str) -> Any:  # noqa: ANN401 - JSON
        """Return a server as the API shows it."""
        return self.api.get(f"/api/servers/{server_id}").expect(200)

    def wait_server(self, server_id: str, *, timeout: float = 60, **wanted: object) -> Any:  # noqa: ANN401 - JSON
        """Wait until a server's fields equal the given ones."""
        return self._wait_for(f"/api/servers/{server_id}", timeout, wanted)

    def add_app(self, host: Host, server_id: str, name: str, compose: str) -> str:
        """Put an app on a host below /srv, and register it; returns its id."""
        host.write(f"/srv/{name}/compose.yaml", compose)
        body = {"name": name, "projectId": self.project_id, "serverId": server_id, "cdPath": f"/srv/{name}"}
        return str(self.api.post("/api/apps", body).expect(201)["id"])

    def app(self, app_id: str) -> Any:  # noqa: ANN401 - JSON
        """Return an app as the API shows it."""
        return self.api.get(f"/api/apps/{app_id}").expect(200)

    def wait_app(self, app_id: str, *, timeout: float = 60, **wanted: object) -> Any:  # noqa: ANN401 - JSON
        """Wait until an app's fields equal the given ones."""
        return self._wait_for(f"/api/apps/{app_id}", timeout, wanted)

    def wait_operation(self, operation_id: str, *, timeout: float = 120) -> Any:  # noqa: ANN401 - JSON
        """Wait for the end of an operation, and return it."""

        def ended() -> Any:  # noqa: ANN401 - JSON
            shown = self.api.get(f"/api/operations/{operation_id}").expect(200)
            return shown if shown["state"] not in {"queued", "running"} else None

        return eventually(ended, timeout=timeout, what="the end of the operation")

    def _wait_for(self, path: str, timeout: float, wanted: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        def right() -> Any:  # noqa: ANN401 - JSON
            shown = self.api.get(path).expect(200)
            assert {key: shown[key] for key in wanted} == wanted, shown
            return shown

        return eventually(right, timeout=timeout, what=f"{path} {wanted}")

    def _put(self, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.bundle.with_suffix(".part")
        part.write_bytes(content)
        part.replace(self.bundle)


def files_of(host: Host) -> set[str]:
    """Return the paths of all files that an installation may leave."""
    return set(host.run("sh", "-c", _LISTING).splitlines())
