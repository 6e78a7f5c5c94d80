"""A controller in the test's own process, with a clock that can be shifted, and a real agent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
from moorage_controller.app import Controller
from moorage_controller.settings import Settings
from moorage_lab.api import Api
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.waiting import eventually_async
from shifted_clock import ShiftedClock

_PASSWORD = "correct horse battery"  # noqa: S105 - of a controller that lives for one test


class Member:
    """A controller in this process, with a clock of its own, and a real agent enrolled with it."""

    def __init__(self, folder: Path, engine: PrivateEngine) -> None:
        self.folder = folder
        self.apps = folder / "apps"
        self.apps.mkdir(parents=True)
        self.clock = ShiftedClock()
        self.engine = engine
        self.agent = AgentProcess(folder / "agent", engine, allow_roots=[self.apps])
        self.api: Api
        self.server_id = ""

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[None]:
        """Run the controller; the same data folder each time."""
        settings = Settings(
            port=0,
            moorage_data_dir=self.folder / "controller",
            admin_password=_PASSWORD,
            rate_limit_per_minute=0,
        )
        async with Controller(settings, self.clock) as controller:
            self.api = Api(f"http://{controller.address}")
            self.api = await asyncio.to_thread(self.api.login, "admin", _PASSWORD)
            yield

    async def make_server(self) -> None:
        """Register the server, without an agent yet."""
        server = await self.call("POST", "/api/servers", {"name": "lab", "address": "127.0.0.1"})
        self.server_id = str(server["id"])

    async def join(self) -> None:
        """Enrol and start the agent, and wait until it is online."""
        await self.make_server()
        await asyncio.to_thread(self.agent.enroll, self.api.url, await self.join_token())
        await asyncio.to_thread(self.agent.start)
        await self.wait_for(f"/api/servers/{self.server_id}", status="online")

    async def join_token(self) -> str:
        """Return a new join token for the server."""
        return str((await self.call("POST", f"/api/servers/{self.server_id}/enrollment-token"))["token"])

    async def start_app(self, name: str, compose: str, minutes: int, *, status: int = 200) -> str:
        """Register an app and start it; returns its id."""
        (self.apps / name).mkdir()
        (self.apps / name / "compose.yaml").write_text(compose)
        project = await self.call("POST", "/api/projects", {"name": name})
        body = {"name": name, "projectId": project["id"], "serverId": self.server_id, "cdPath": str(self.apps / name)}
        app = await self.call("POST", "/api/apps", body)
        await self.call("POST", f"/api/apps/{app['id']}/start", {"timeout": minutes}, expect=status)
        return str(app["id"])

    async def call(self, method: str, path: str, body: object = None, *, expect: int | None = None) -> Any:  # noqa: ANN401 - JSON
        """Call the API."""
        reply = await asyncio.to_thread(self.api.request, method, path, body)
        return reply.expect(*(() if expect is None else (expect,)))

    async def wait_for(self, path: str, *, within: float = 60, **wanted: object) -> dict[str, Any]:
        """Wait until a resource's fields equal `wanted`; at most `within` seconds."""

        async def right() -> dict[str, Any] | None:
            shown: dict[str, Any] = await self.call("GET", path)
            assert {key: shown[key] for key in wanted} == wanted
            return shown

        return await eventually_async(right, timeout=within, what=f"{path} {wanted}")

    async def running(self, name: str) -> list[str]:
        """Query the Engine for the names of a directory's running containers."""

        def ask() -> list[str]:
            client = docker.APIClient(base_url=self.engine.host, version="auto")
            label = f"com.docker.compose.project.working_dir={self.apps / name}"
            names = [row["Names"][0] for row in client.containers(filters={"label": label})]
            client.close()
            return names

        return await asyncio.to_thread(ask)

    async def auto_stops(self, app_id: str) -> list[dict[str, Any]]:
        """Return the AUTO_STOP audit entries of an app."""
        logs = (await self.call("GET", "/api/audit-logs?limit=1000"))["logs"]
        return [entry for entry in logs if entry["action"] == "AUTO_STOP" and entry["resourceId"] == app_id]
