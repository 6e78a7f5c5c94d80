"""State of an app's directory: observations of another directory are ignored."""

import asyncio
from uuid import UUID

import pytest
from factories import PATH, World, add_app
from fakes import FakeHost, settle
from moorage_common.docker.states import ContainerState, Project
from moorage_controller.hosts.transport import AppObservation
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.services.runs.transitions import Rules
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps

_WEB = ContainerState(id="a" * 64, name="shop-web-1", service="web", image="sample:1", state="running")


async def test_name_of_the_old_directory_is_forgotten(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    await settle()
    assert (await world.row(app_id)).project_directory == PATH
    (await world.admin.put(f"/api/apps/{app_id}", {"cdPath": "/srv/apps/new"})).expect(200)
    row = await world.row(app_id)
    assert (row.project_name, row.project_directory) == (None, None)
    host.set_running(PATH, ["web"])
    await settle()
    assert (await world.app(app_id))["status"] == "stopped"


async def test_late_observation_of_other_directory_changes_nothing(database: Database) -> None:
    app = await add_app(database, cd_path="/srv/new")
    observations = Observations(database, Signals(), Rules())
    for server_id, path in ((app.server_id, "/srv/old"), (UUID(int=1), "/srv/new")):
        late = AppObservation(path, Project("old", path), (_WEB,), looked_at=1, boot_id="boot")
        await observations.app_seen(app.id, server_id, late)
    async with database.read() as connection:
        assert await apps.get(connection, app.id) == app


@pytest.mark.parametrize("path", [PATH, f"{PATH}/", f"/{PATH}", "/srv//apps/./shop"])
async def test_second_app_in_a_directory_is_refused(world: World, app_id: str, path: str) -> None:
    app = await world.app(app_id)
    body = {"name": "second", "serverId": app["serverId"], "projectId": app["projectId"], "cdPath": path}
    problem = (await world.admin.post("/api/apps", body)).expect(409, "directory_taken")
    assert app["name"] in problem["error"]
    other = await world.new_app(app["serverId"], name="other", cdPath="/srv/other")
    (await world.admin.put(f"/api/apps/{other}", {"cdPath": path})).expect(409, "directory_taken")
    assert (await world.app(other))["cdPath"] == "/srv/other"


async def test_same_directory_on_another_server_is_free(world: World, app_id: str) -> None:
    app = await world.app(app_id)
    server_id = await world.new_server(name="another")
    twin = await world.new_app(server_id, name="twin", cdPath=app["cdPath"])
    (await world.admin.put(f"/api/apps/{twin}", {"serverId": app["serverId"]})).expect(409, "directory_taken")


async def test_update_that_keeps_the_directory_is_no_conflict(world: World, app_id: str) -> None:
    (await world.admin.put(f"/api/apps/{app_id}", {"cdPath": PATH, "name": "renamed"})).expect(200)


async def test_concurrent_apps_get_a_directory_once(world: World, app_id: str) -> None:
    app = await world.app(app_id)
    body = {"name": "racer", "serverId": app["serverId"], "projectId": app["projectId"], "cdPath": "/srv/race"}
    replies = await asyncio.gather(*(world.admin.post("/api/apps", body) for _ in range(5)))
    assert sorted(reply.status for reply in replies) == [201, 409, 409, 409, 409]


async def test_app_creation_detects_linked_directory_and_same_project(
    world: World, host: FakeHost, app_id: str
) -> None:
    app = await world.app(app_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.link("/srv/link", PATH)
    body = {"name": "second", "serverId": app["serverId"], "projectId": app["projectId"], "cdPath": "/srv/link"}
    (await world.admin.post("/api/apps", body)).expect(409, "directory_taken")
    host.set_running("/srv/elsewhere/shop", ["web"])
    problem = (await world.admin.post("/api/apps", body | {"cdPath": "/srv/elsewhere/shop"})).expect(409)
    assert problem["code"] == "project_taken"
    assert app["name"] in problem["error"]
    host.reachable = False
    await world.clock.run(1)
    made = await world.new_app(app["serverId"], name="second", cdPath="/srv/link")
    host.reachable = True
    await settle()
    await world.clock.run(60)
    for one, name in ((app_id, "second"), (made, app["name"])):
        assert name in (await world.app(one))["healthDetail"]
        problem = (await world.user.post(f"/api/apps/{one}/restart")).expect(409, "directory_taken")
        assert name in problem["error"]
    assert (await world.app(app_id))["status"] == "running"
    assert (await world.app(made))["status"] == "stopped", "what runs is that of whoever was there first"
