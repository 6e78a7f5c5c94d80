"""A real controller with an honest host and a hostile one, and measurements of the honest side."""

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from moorage_common.tls import x509
from moorage_common.tls.join_token import JoinToken
from moorage_lab.api import Api
from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.processes import Process
from moorage_lab.waiting import eventually

SECONDS = float(os.environ.get("MOORAGE_ATTACK_SECONDS", "5"))
"""Seconds of an attack. From 100 on, runs of a minute end during it, and their lateness is measured."""
_APPS = 5
_ATTACKERS = Path(__file__).parent / "attackers.py"
_MIB = 1 << 20


@dataclass
class Figures:
    """Memory in MiB before, at peak and after the attack; read latencies in ms; lateness of stops in seconds."""

    before: float = 0.0
    peak: float = 0.0
    after: float = 0.0
    reads: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    @property
    def grown(self) -> float:
        """The peak memory growth in MiB."""
        return self.peak - self.before

    @property
    def p99(self) -> float:
        """The 99th percentile of read latencies in milliseconds."""
        return statistics.quantiles(self.reads, n=100)[98]

    def __str__(self) -> str:
        """Return them as a row."""
        late = f"{max(self.late):.2f} s at most, of {len(self.late)}" if self.late else "none was due"
        return (
            f"memory {self.before:.0f} -> {self.peak:.0f} (+{self.grown:.0f}) -> {self.after:.0f} MiB; "
            f"{len(self.reads)} reads: median {statistics.median(self.reads):.0f} ms, p99 {self.p99:.0f} ms; "
            f"stops late: {late}"
        )


class Siege:
    """The controller, and the hosts that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {"RATE_LIMIT_PER_MINUTE": "0"}
        self.controller = ControllerProcess(folder / "controller", environment=environment)
        self._processes: list[Process] = []
        self._stops: dict[str, float] = {}
        self.good = ""
        self._project = ""

    def __enter__(self) -> Self:
        """Start the controller, and an honest host with apps whose runs last a minute."""
        self.controller.start()
        self.api = self.controller.admin()
        self._project = self.api.post("/api/projects", {"name": "siege"}).expect(201)["id"]
        self.good = self.add_agent("good")
        self.wait_online(self.good)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""
        for process in (*self._processes, self.controller.process):
            if process.alive:
                process.kill()

    def add_agent(self, mode: str) -> str:
        """Enrol an agent like an honest one, and start it; returns the server's id."""
        port, folder = free_port(), self.folder / mode
        folder.mkdir()
        server = self.api.post("/api/servers", {"name": mode, "address": "127.0.0.1"}).expect(201)["id"]
        for n in range(_APPS):
            self.add_app(server, f"/srv/{mode}/{n}")
        token = JoinToken.parse(self.api.post(f"/api/servers/{server}/enrollment-token").expect(201)["token"])
        key = x509.new_key()
        csr, endpoint = x509.signing_request(key, "Moorage agent").decode(), f"127.0.0.1:{port}"
        body = {"token": token.proof(csr, endpoint, "1"), "csr": csr, "endpoint": endpoint, "version": "1"}
        config = {"mode": mode, "port": port, "notes": str(folder / "notes")}
        # It listens before it is registered, so that no check fails.
        answer = self.api.post("/api/enroll", body).expect()
        for name, pem in (
            ("key", x509.key_to_pem(key)),
            ("certificate", answer["certificate"].encode()),
            ("ca", answer["ca"].encode()),
        ):
            (folder / name).write_bytes(pem)
            config[name] = str(folder / name)
        self.run("agent", mode, config)
        eventually(lambda: listens(port), timeout=30, what="the agent listens")
        return str(server)

    def add_app(self, server: str, path: str) -> str:
        """Register an app whose runs last a minute; returns its id."""
        body = {"name": str(uuid4()), "projectId": self._project, "serverId": server, "cdPath": path}
        return str(self.api.post("/api/apps", {**body, "autoStopTimeout": 1}).expect(201)["id"])

    def run(self, kind: str, name: str, config: dict[str, Any]) -> None:
        """Start an attacker."""
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(config))
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        argv = [sys.executable, str(_ATTACKERS), kind, str(file)]
        process = Process(name, argv, folder=self.folder, environment=environment)
        process.start()
        self._processes.append(process)

    def server(self, server: str) -> dict[str, Any]:
        """Return a server as the API shows it."""
        shown: dict[str, Any] = self.api.get(f"/api/servers/{server}").expect(200)
        return shown

    def apps(self, server: str) -> list[dict[str, Any]]:
        """Return the apps of a server."""
        return [app for app in self.api.get("/api/apps?limit=1000").expect(200) if app["serverId"] == server]

    def wait_online(self, server: str) -> None:
        """Wait until a server is online."""
        eventually(lambda: self.server(server)["status"] == "online", timeout=30, what="the server online")

    @contextmanager
    def measured(self) -> Iterator[Figures]:
        """Measure during the attack that the body begins; waits `SECONDS` at its end."""
        figures, over = Figures(), threading.Event()
        reader = self.controller.admin()
        for _ in range(50):
            _timed_read(reader, self.good)
        figures.before = figures.peak = self._memory()
        threads = [
            threading.Thread(target=self._read, args=(reader, figures, over)),
            threading.Thread(target=self._weigh, args=(figures, over)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield figures
            time.sleep(SECONDS)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        figures.after = self._memory()
        figures.late = self._lateness()
        sys.stdout.write(f"\n{figures}\n")

    def notes(self, mode: str) -> list[tuple[str, float, int]]:
        """Return an agent's notes."""
        file = self.folder / mode / "notes"
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def _memory(self) -> float:
        status = Path(f"/proc/{self.controller.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024 / _MIB

    def _weigh(self, figures: Figures, over: threading.Event) -> None:
        while not over.wait(0.1):
            figures.peak = max(figures.peak, self._memory())

    def _read(self, reader: Api, figures: Figures, over: threading.Event) -> None:
        looked = 0.0
        while not over.wait(0.02):
            figures.reads.append(_timed_read(reader, self.good))
            if time.monotonic() - looked > _SECOND:
                looked = time.monotonic()
                for app in reader.get("/api/apps?limit=1000").expect(200):
                    if app["stopAt"] and app["serverId"] == self.good:
                        self._stops.setdefault(f"{app['cdPath']} {app['stopAt']}", app["stopAt"] / 1000)

    def _lateness(self) -> list[float]:
        """Return the lateness of each stop at the honest host."""
        came = self.notes("good")
        late = []
        for name, stop_at in self._stops.items():
            path = name.split()[0]
            mine = [at - stop_at for noted, at, _ in came if noted == path and abs(at - stop_at) < _NEAR]
            late += mine[:1]
            if not mine and stop_at < time.time() - _SECOND:
                late.append(time.time() - stop_at)
        return late


_SECOND = 1.0
_NEAR = 40.0


def _timed_read(api: Api, server: str) -> float:
    began = time.perf_counter()
    api.get(f"/api/servers/{server}").expect(200)
    return (time.perf_counter() - began) * 1000
