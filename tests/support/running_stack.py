"""A complete Moorage for tests: a real controller, a real agent, a real Engine, and the test's own apps."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from moorage_lab.api import Api
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed, plain_environment
from moorage_lab.waiting import eventually

IMAGE = "moorage-sample:local"
SLEEPER = f"services:\n  web: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000}}\n"
SLOW = f"""\
services:
  db:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sh -c "sleep 10; touch /ready; sleep 1000"
    healthcheck: {{test: ["CMD", "test", "-f", "/ready"], interval: 1s, timeout: 5s, retries: 60}}
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sleep 1000
    depends_on: {{db: {{condition: service_healthy}}}}
"""
"""A start that takes more than ten seconds: enough time to kill a process during it."""
NEVER_HEALTHY = f"""\
services:
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sleep 1000
    healthcheck: {{test: ["CMD", "false"], interval: 1s, retries: 10}}
  after:
    image: {IMAGE}
    depends_on: {{web: {{condition: service_healthy}}}}
"""
"""Its start takes about ten seconds, and fails."""
DEAF = f"""\
services:
  web:
    image: {IMAGE}
    stop_grace_period: 1s
    command: sh -c "trap '' TERM; while :; do sleep 1; done"
"""
"""It ignores the signal that asks it to end."""


@dataclass
class Stack:
    """Controller and agent, started and enrolled; `apps` is the directory the agent's policy allows.

    `environment` adds to the controller's settings.
    """

    folder: Path
    engine: PrivateEngine
    environment: dict[str, str] = field(default_factory=dict)
    controller: ControllerProcess = field(init=False)
    agent: AgentProcess = field(init=False)
    server_id: str = field(init=False)
    project_id: str = field(init=False)

    def __post_init__(self) -> None:
        """Create the folders without starting anything."""
        self.apps = self.folder / "apps"
        self.controller = ControllerProcess(
            # Tests poll faster than people do.
            self.folder / "controller",
            environment={"RATE_LIMIT_PER_MINUTE": "0", **self.environment},
        )
        self.agent = AgentProcess(self.folder / "agent", self.engine, allow_roots=[self.apps])
        self._admin: Api | None = None

    @property
    def api(self) -> Api:
        """The REST API as the admin."""
        if self._admin is None:
            self._admin = self.controller.admin()
        return self._admin

    def start(self) -> None:
        """Start both, enrol, and wait until the server is online."""
        self.apps.mkdir(parents=True)
        self.controller.start()
        self.server_id = self.api.post("/api/servers", {"name": "lab", "address": "127.0.0.1"}).expect(201)["id"]
        self.project_id = self.api.post("/api/projects", {"name": "tests"}).expect(201)["id"]
        self.agent.enroll(self.controller.url, self.join_token())
        self.agent.start()
        self.wait_online()

    def stop(self) -> None:
        """Remove leftovers of the tests, then stop both."""
        client = docker.APIClient(base_url=self.engine.host, version="auto")
        for row in client.containers(all=True, filters={"label": "com.docker.compose.project"}):
            if row["Labels"]["com.docker.compose.project.working_dir"].startswith(str(self.folder)):
                client.remove_container(row["Id"], force=True)
        client.close()
        for process in (self.agent.process, self.controller.process):
            if process.alive:
                process.terminate()

    def join_token(self, server_id: str | None = None) -> str:
        """Return a new join token."""
        path = f"/api/servers/{server_id or self.server_id}/enrollment-token"
        return str(self.api.post(path).expect(201)["token"])

    def wait_online(self) -> None:
        """Wait until the controller reaches the agent, and the agent its Engine."""
        self.wait_server(status="online")

    def wait_server(self, *, status: str) -> None:
        """Wait until the server has a status."""
        path = f"/api/servers/{self.server_id}"
        eventually(lambda: self.api.get(path).json["status"] == status, timeout=30, what=f"the server {status}")

    def make_app(self, name: str, compose: str | None, directory: Path | None = None, **fields: object) -> str:
        """Write a compose file (none where it is None) and register the app; returns its id."""
        directory = directory or self.apps / name
        if compose is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "compose.yaml").write_text(compose)
        body = {"name": name, "projectId": self.project_id, "serverId": self.server_id, "cdPath": str(directory)}
        return str(self.api.post("/api/apps", body | fields).expect(201)["id"])

    def app(self, app_id: str) -> dict[str, Any]:
        """Return an app as the API shows it."""
        shown: dict[str, Any] = self.api.get(f"/api/apps/{app_id}").expect(200)
        return shown

    def wait_app(self, app_id: str, *, timeout: float = 45, **wanted: object) -> dict[str, Any]:
        """Wait until the app's fields equal the given ones."""

        def right() -> dict[str, Any] | None:
            shown = self.app(app_id)
            assert {key: shown[key] for key in wanted} == wanted, shown
            return shown

        return eventually(right, timeout=timeout, what=f"{wanted}")

    def operation(self, operation_id: str) -> dict[str, Any]:
        """Return an operation as the API shows it."""
        shown: dict[str, Any] = self.api.get(f"/api/operations/{operation_id}").expect(200)
        return shown

    def containers(self, directory: Path, *, running: bool = False) -> list[str]:
        """Query the Engine for the services of the containers of a directory or below it."""
        client = docker.APIClient(base_url=self.engine.host, version="auto")
        rows = client.containers(all=not running, filters={"label": "com.docker.compose.project"})
        client.close()
        real = str(directory.resolve())
        labels = [row["Labels"] for row in rows]
        ours = [x for x in labels if x["com.docker.compose.project.working_dir"].startswith(real)]
        return sorted(x["com.docker.compose.service"] for x in ours)

    def compose(self, directory: Path, *arguments: str) -> None:
        """Run Compose manually on the host."""
        environment = plain_environment(DOCKER_HOST=self.engine.host)
        argv = [installed("docker-compose"), *arguments]
        subprocess.run(argv, cwd=directory, env=environment, check=True, capture_output=True, timeout=60)

    def audit(self, action: str) -> list[dict[str, Any]]:
        """Return the audit entries of an action, the newest first."""
        logs: list[dict[str, Any]] = self.api.get("/api/audit-logs?limit=1000").expect(200)["logs"]
        return [entry for entry in logs if entry["action"] == action]

    def journal(self, operation_id: str) -> Path:
        """Return an operation's folder in the agent's journal."""
        return self.agent.folder / "data" / "operations" / operation_id


def progress(output: str) -> set[str]:
    """Return the lines of an operation's output."""
    return set(output.splitlines())
