"""Servers, projects and apps: create, list, read, update and delete, with the fields that dashboards read."""

import uuid
from typing import Any

import pytest
from factories import ENDPOINT, PATH, World
from fakes import EPOCH, settle

NOW = int(EPOCH.timestamp() * 1000)
SERVER = {"name": "Production Server 1", "address": "192.168.1.100", "sshUser": "root", "sshPort": 22}
KINDS = ["servers", "projects", "apps"]


async def make(world: World, kind: str, name: str) -> Any:  # noqa: ANN401 - JSON
    """Create a resource of a kind with a name; return it."""
    body: dict[str, object] = {"name": name}
    if kind == "servers":
        body["address"] = "10.1.1.1"
    if kind == "apps":
        body |= {"cdPath": PATH, "serverId": await world.new_server(name="of " + name)}
        body["projectId"] = (await make(world, "projects", "of " + name))["id"]
    return (await world.admin.post(f"/api/{kind}", body)).expect(201)


async def test_server_reply_matches_the_guide(world: World) -> None:
    made = (await world.admin.post("/api/servers", SERVER)).expect(201)
    assert {name: made[name] for name in SERVER} == SERVER
    shown = (await world.user.get("/api/servers")).expect(200)
    assert shown == [made]
    assert made["status"] == "offline"
    assert made["runningAppsCount"] == 0
    assert made["lastChecked"] is None
    assert (made["connection"], made["apiEndpoint"], made["agentVersion"]) == ("none", None, None)
    assert uuid.UUID(made["id"])


async def test_server_with_an_agent_is_online_with_its_facts(world: World) -> None:
    server_id, host = await world.new_host()
    host.set_running(PATH, ["web", "db"])
    server = (await world.user.get(f"/api/servers/{server_id}")).expect(200)
    assert (server["status"], server["connection"], server["apiEndpoint"]) == ("online", "agent", ENDPOINT)
    assert (server["agentVersion"], server["uptime"], server["lastChecked"]) == ("0.1.0", 4711, NOW)
    assert server["statusDetail"] is None
    status = (await world.user.get(f"/api/servers/{server_id}/status")).expect(200)
    assert status == {"status": "online", "runningContainers": 2, "uptime": 4711, "lastChecked": NOW}


async def test_server_check_runs_immediately_and_reports_failure_reason(world: World) -> None:
    server_id, host = await world.new_host()
    host.reachable = False
    world.clock.advance(0.25)
    status = (await world.user.get(f"/api/servers/{server_id}/status")).expect(200)
    assert status == {"status": "offline", "runningContainers": 0, "uptime": 4711, "lastChecked": NOW + 250}
    server = (await world.user.get(f"/api/servers/{server_id}")).expect(200)
    assert "refused" in server["statusDetail"] or "broke" in server["statusDetail"]
    host.reachable = True
    host.engine_problem = "The Docker Engine doesn't answer: start it."
    status = (await world.user.get(f"/api/servers/{server_id}/status")).expect(200)
    assert status["status"] == "offline"
    server = (await world.user.get(f"/api/servers/{server_id}")).expect(200)
    assert server["statusDetail"] == host.engine_problem


async def test_server_check_without_agent_is_reported(world: World) -> None:
    server_id = await world.new_server()
    status = (await world.user.get(f"/api/servers/{server_id}/status")).expect(200)
    assert (status["status"], status["runningContainers"]) == ("offline", 0)
    assert "agent" in (await world.user.get(f"/api/servers/{server_id}")).expect(200)["statusDetail"]


async def test_server_status_change_is_detected_and_audited_once(world: World) -> None:
    server_id, host = await world.new_host()
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    assert (await world.app(app_id))["health"] == "healthy"
    await world.clock.run(1)
    host.reachable = False
    await world.clock.run(60)
    assert (await world.user.get(f"/api/servers/{server_id}")).expect(200)["status"] == "offline"
    app = await world.app(app_id)
    assert (app["status"], app["health"]) == ("running", "unknown")
    host.reachable = True
    await world.clock.run(20)
    assert (await world.user.get(f"/api/servers/{server_id}")).expect(200)["status"] == "online"
    assert (await world.app(app_id))["health"] == "healthy"
    turns = [e["data"]["status"] for e in await world.audit("STATUS_CHANGE") if e["resourceType"] == "server"]
    assert turns == ["online", "offline", "online"]


async def test_app_reply_matches_the_guide(world: World) -> None:
    server_id = await world.new_server()
    project = (await world.admin.post("/api/projects", {"name": "QMS", "description": "All of it"})).expect(201)
    assert project.keys() == {"id", "name", "description", "createdAt"}
    assert (project["description"], project["createdAt"]) == ("All of it", NOW)
    sent = {
        "name": "QMS Backend",
        "projectId": project["id"],
        "serverId": server_id,
        "cdPath": "/home/apps/qms-backend",
        "appUrl": "http://192.168.1.100:8080",
        "autoStopTimeout": 60,
    }
    made = (await world.admin.post("/api/apps", sent)).expect(201)
    assert {name: made[name] for name in sent} == sent
    assert (made["status"], made["startedAt"], made["stopAt"], made["domain"]) == ("stopped", None, None, "")
    assert (made["health"], made["lastError"], made["operationId"]) == ("unknown", None, None)
    assert (await world.user.get("/api/apps")).expect(200) == [made]
    assert (await world.user.get(f"/api/apps/{made['id']}")).expect(200) == made


async def test_default_timeout_is_one_hour(world: World) -> None:
    assert (await make(world, "apps", "a"))["autoStopTimeout"] == 60


@pytest.mark.parametrize("kind", KINDS)
async def test_lists_are_arrays_even_when_empty_and_sorted_by_name(world: World, kind: str) -> None:
    assert (await world.user.get(f"/api/{kind}")).expect(200) == []
    for name in ("Zebra", "Alpha", "Mike"):
        await make(world, kind, name)
    names = [item["name"] for item in (await world.user.get(f"/api/{kind}")).expect(200)]
    assert [name for name in names if not name.startswith("of ")] == ["Alpha", "Mike", "Zebra"]


@pytest.mark.parametrize("kind", KINDS)
async def test_field_absent_from_update_is_kept(world: World, kind: str) -> None:
    made = await make(world, kind, "Old")
    changed = (await world.admin.put(f"/api/{kind}/{made['id']}", {"name": "  New "})).expect(200)
    assert changed == made | {"name": "New"}
    assert (await world.admin.put(f"/api/{kind}/{made['id']}", {})).expect(200) == changed
    assert (await world.admin.put(f"/api/{kind}/{made['id']}", {"name": None})).expect(200) == changed
    assert (await world.admin.get(f"/api/{kind}/{made['id']}")).expect(200) == changed


@pytest.mark.parametrize("kind", KINDS)
async def test_deleted_resource_is_gone(world: World, kind: str) -> None:
    made = await make(world, kind, "x")
    gone = (await world.admin.delete(f"/api/{kind}/{made['id']}")).expect(200)
    assert gone["success"] is True
    assert gone["message"]
    (await world.admin.get(f"/api/{kind}/{made['id']}")).expect(404)
    (await world.admin.delete(f"/api/{kind}/{made['id']}")).expect(404)


async def test_optional_field_is_unset_by_null(world: World) -> None:
    app = await make(world, "apps", "a")
    path = f"/api/apps/{app['id']}"
    full = {"appUrl": "https://x.example.com/y", "domain": "x.example.com"}
    assert (await world.admin.put(path, full)).expect(200) == app | full
    assert (await world.admin.put(path, {"appUrl": None, "domain": ""})).expect(200) == app


async def test_error_for_unknown_project_and_server_names_both(world: World) -> None:
    nothing = str(uuid.uuid4())
    body = {"name": "x", "cdPath": PATH, "projectId": nothing, "serverId": nothing}
    errors = (await world.admin.post("/api/apps", body)).expect(422)["errors"]
    assert {error["field"] for error in errors} == {"projectId", "serverId"}
    app = await make(world, "apps", "a")
    errors = (await world.admin.put(f"/api/apps/{app['id']}", {"serverId": nothing})).expect(422)["errors"]
    assert [error["field"] for error in errors] == ["serverId"]


async def test_server_with_apps_cannot_be_deleted(world: World) -> None:
    app = await make(world, "apps", "a")
    (await world.admin.delete(f"/api/servers/{app['serverId']}")).expect(409, "server_in_use")
    (await world.admin.delete(f"/api/apps/{app['id']}")).expect(200)
    (await world.admin.delete(f"/api/servers/{app['serverId']}")).expect(200)


async def test_project_deletion_removes_its_apps_unless_one_runs(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    project_id = (await world.app(app_id))["projectId"]
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.admin.delete(f"/api/projects/{project_id}")).expect(409, "app_running")
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    (await world.admin.delete(f"/api/projects/{project_id}")).expect(200)
    assert (await world.user.get("/api/apps")).expect(200) == []


async def test_location_of_running_app_cannot_change_but_other_fields_can(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    other = await world.new_server(name="other")
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    path = f"/api/apps/{app_id}"
    (await world.admin.put(path, {"serverId": other})).expect(409, "app_running")
    (await world.admin.put(path, {"cdPath": "/elsewhere"})).expect(409, "app_running")
    (await world.admin.put(f"/api/servers/{server_id}", {"address": "10.9.9.9"})).expect(409, "app_running")
    same = {"serverId": server_id, "cdPath": PATH, "name": "Another"}
    assert (await world.admin.put(path, same)).expect(200)["name"] == "Another"
    (await world.admin.put(f"/api/servers/{server_id}", {"name": "s"})).expect(200)
    (await world.user.post(f"{path}/stop")).expect(200)
    (await world.admin.put(path, {"serverId": other, "cdPath": "/elsewhere"})).expect(200)


async def test_running_app_is_stopped_and_deleted_only_by_force(world: World) -> None:
    server_id, host = await world.new_host()
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.admin.delete(f"/api/apps/{app_id}")).expect(409, "app_running")
    (await world.admin.delete(f"/api/apps/{app_id}?force=false")).expect(409, "app_running")
    (await world.admin.delete(f"/api/apps/{app_id}?force=true")).expect(200)
    assert [kind.value for kind, _ in host.commands] == ["up", "down"]
    assert host.app(PATH).containers == []


async def test_app_that_cannot_be_stopped_is_not_deleted_by_force(world: World) -> None:
    server_id, host = await world.new_host()
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.reachable = False
    (await world.admin.delete(f"/api/apps/{app_id}?force=true")).expect(409, "app_running")
    assert (await world.app(app_id))["status"] == "running"


async def test_plain_user_may_change_only_the_timeout(world: World) -> None:
    app = await make(world, "apps", "a")
    path = f"/api/apps/{app['id']}"
    assert (await world.user.put(path, {"autoStopTimeout": 15})).expect(200)["autoStopTimeout"] == 15
    # A dashboard sends the whole form back.
    same = {name: app[name] for name in ("name", "cdPath", "projectId", "serverId")}
    assert (await world.user.put(path, {**same, "autoStopTimeout": 20})).expect(200)["autoStopTimeout"] == 20
    changes = {"name": "b", "cdPath": "/b", "appUrl": "http://b", "domain": "b", "projectId": str(uuid.uuid4())}
    for field, value in changes.items():
        reply = await world.user.put(path, {"autoStopTimeout": 30, field: value})
        assert reply.status in {403, 422}, (field, reply.text)
    assert await world.app(app["id"]) == app | {"autoStopTimeout": 20, "defaultTimeout": 20}


async def test_new_app_is_watched_immediately(world: World) -> None:
    server_id, host = await world.new_host()
    host.set_running(PATH, ["web"])
    app_id = await world.new_app(server_id)
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["stopAt"]) == ("running", NOW, NOW + 3_600_000)
    host.set_running(PATH, [])
    await settle()
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["stopAt"]) == ("stopped", None, None)
    assert (await world.user.get(f"/api/servers/{server_id}")).expect(200)["runningAppsCount"] == 0


async def test_join_token_is_valid_for_one_server_and_one_hour(world: World) -> None:
    server_id = await world.new_server()
    made = (await world.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)
    assert made["expiresAt"] == NOW + 3_600_000
    assert made["token"] not in made["command"]
    assert "https://moorage.example.com" in made["command"]
