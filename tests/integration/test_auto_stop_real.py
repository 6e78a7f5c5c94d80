"""Auto-stop on a real host: the controller's clock is moved, everything else is as it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from moorage_controller.app import Controller
from moorage_controller.settings import Settings
from moorage_lab.agent import AgentProcess
from moorage_lab.api import Api
from moorage_lab.engine import PrivateEngine
from moorage_lab.waiting import eventually_async
from shifted_clock import ShiftedClock
from stack import IMAGE, SLEEPER

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

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[None]:
        """Run the controller; the same data folder each time."""
        settings = Settings(port=0, moorage_data_dir=self.folder / "controller", admin_password=_PASSWORD)
        async with Controller(settings, self.clock) as controller:
            self.api = Api(f"http://{controller.address}")
            self.api = await asyncio.to_thread(self.api.login, "admin", _PASSWORD)
            yield

    async def join(self) -> None:
        """Enrol and start the agent, and wait until it is online."""
        server = await self.call("POST", "/api/servers", {"name": "lab", "address": "127.0.0.1"})
        self.server_id = server["id"]
        token = (await self.call("POST", f"/api/servers/{self.server_id}/enrollment-token"))["token"]
        await asyncio.to_thread(self.agent.enroll, self.api.url, token)
        await asyncio.to_thread(self.agent.start)
        await self.wait_for(f"/api/servers/{self.server_id}", status="online")

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

    async def wait_for(self, path: str, **wanted: object) -> dict[str, Any]:
        """Wait until a resource's fields are as wanted."""

        async def right() -> dict[str, Any] | None:
            shown: dict[str, Any] = await self.call("GET", path)
            assert {key: shown[key] for key in wanted} == wanted
            return shown

        return await eventually_async(right, timeout=30, what=f"{path} {wanted}")

    async def running(self, name: str) -> list[str]:
        """Ask the Engine itself for the names of a directory's running containers."""

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


@pytest.fixture
async def member(engine: PrivateEngine, sample_image: str, tmp_path: Path) -> AsyncIterator[Member]:
    """Return a member whose controller is not running yet; its agent is ended afterwards."""
    assert sample_image == IMAGE
    made = Member(tmp_path, engine)
    yield made
    if made.agent.process.alive:
        await asyncio.to_thread(made.agent.terminate)


async def test_an_app_is_stopped_at_its_deadline_and_not_before(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("timed", SLEEPER, 2)
        member.clock.shift(110)
        await member.call("GET", "/readyz")
        assert (await member.call("GET", f"/api/apps/{app_id}"))["status"] == "running"
        assert await member.running("timed")

        member.clock.shift(10)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped", startedAt=None, stopAt=None)
        assert await member.running("timed") == []
        [entry] = await member.auto_stops(app_id)
        assert entry["data"] == {"reason": "timeout", "timeout": 2}
        assert entry["username"] == "auto-stop"
        assert entry["userId"] is None


async def test_a_failed_start_that_left_containers_is_stopped_too(member: Member) -> None:
    broken = f"  broken: {{image: '{IMAGE}', command: /not/there, depends_on: [web]}}\n"
    async with member.controller():
        await member.join()
        app_id = await member.start_app("half", SLEEPER + broken, 1, status=502)
        assert await member.running("half")
        member.clock.shift(61)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("half") == []
        assert len(await member.auto_stops(app_id)) == 1


async def test_what_became_due_while_the_controller_was_away_is_stopped_at_its_start(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("late", SLEEPER, 3)
    member.clock.shift(3600)
    assert await member.running("late")
    async with member.controller():
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("late") == []
        [entry] = await member.auto_stops(app_id)
        assert entry["data"] == {"reason": "timeout", "timeout": 3}


async def test_a_host_that_was_away_over_the_deadline_is_stopped_when_it_is_back(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("away", SLEEPER, 1)
        await asyncio.to_thread(member.agent.kill)
        await member.wait_for(f"/api/servers/{member.server_id}", status="offline")
        member.clock.shift(120)
        await member.wait_for(f"/api/apps/{app_id}", status="running", health="unknown", operationId=None)
        assert await member.running("away")
        await asyncio.to_thread(member.agent.start)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("away") == []
        assert len(await member.auto_stops(app_id)) == 1


async def test_a_stop_that_the_engine_could_not_do_is_tried_again(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("stubborn", SLEEPER, 1)
        await asyncio.to_thread(member.engine.kill)
        member.clock.shift(61)
        await member.wait_for(f"/api/servers/{member.server_id}", status="offline")

        async def tried() -> bool:
            operations = await member.call("GET", f"/api/operations?appId={app_id}&state=failed")
            return bool(operations)

        await eventually_async(tried, timeout=30, what="a stop that failed")
        assert (await member.call("GET", f"/api/apps/{app_id}"))["status"] == "running"
        await asyncio.to_thread(member.engine.start)
        await member.wait_for(f"/api/servers/{member.server_id}", status="online")
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("stubborn") == []
        assert len(await member.auto_stops(app_id)) == 1
