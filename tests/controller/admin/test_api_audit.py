"""The audit log: one entry per change with actor, address and resource; plain users see their own entries only."""

import json
from typing import Any

from factories import PASSWORD, USER, World
from fakes import settle

AGENT = {"User-Agent": "dashboard/1.0"}


async def test_each_change_writes_one_entry_with_actor_address_and_browser(world: World) -> None:
    server_id, _ = await world.new_host()
    made: dict[str, str] = {}
    bodies: dict[str, dict[str, object]] = {
        "project": {"name": "P"},
        "server": {"name": "S", "address": "10.0.0.2"},
        "app": {"name": "A", "serverId": server_id, "cdPath": "/a"},
    }
    for kind, body in bodies.items():
        if kind == "app":
            body["projectId"] = made["project"]
        reply = await world.admin.send("POST", f"/api/{kind}s", body, headers=AGENT)
        made[kind] = reply.expect(201)["id"]
    for kind, resource_id in made.items():
        await world.admin.send("PUT", f"/api/{kind}s/{resource_id}", {"name": f"{kind}-2"}, headers=AGENT)
    for verb in ("start", "restart", "stop"):
        (await world.admin.send("POST", f"/api/apps/{made['app']}/{verb}", headers=AGENT)).expect(200)
    for kind in ("app", "server", "project"):
        await world.admin.send("DELETE", f"/api/{kind}s/{made[kind]}", headers=AGENT)
    page = (await world.admin.get("/api/audit-logs?limit=1000")).expect(200)
    mine = [entry for entry in page["logs"] if entry["userAgent"] == "dashboard/1.0"]
    found = sorted((entry["action"], entry["resourceType"], entry["resourceId"]) for entry in mine)
    wanted = [(action, kind, made[kind]) for kind in made for action in ("CREATE", "UPDATE", "DELETE")]
    assert found == sorted(wanted + [(action, "app", made["app"]) for action in ("START", "RESTART", "STOP")])
    for entry in mine:
        assert (entry["username"], entry["ipAddress"]) == ("admin", "127.0.0.1")
        assert entry["userId"]
        assert entry["resourceName"]
        assert entry["details"].endswith(".")
        assert entry["createdAt"] == entry["updatedAt"] == "2026-03-04T05:06:07.000Z"


async def test_enrolment_is_audited_with_host_as_actor(world: World) -> None:
    server_id, _ = await world.new_host()
    (entry,) = await world.audit("ENROLL")
    assert (entry["resourceId"], entry["userId"]) == (server_id, None)
    assert entry["username"].endswith(".agents.moorage")
    assert entry["data"] == {"endpoint": "10.0.0.1:7443", "version": "0.1.0"}
    (token,) = await world.audit("TOKEN_CREATE")
    assert (token["username"], token["resourceId"]) == ("admin", server_id)


async def test_refused_request_leaves_no_audit_entry(world: World) -> None:
    before = (await world.admin.get("/api/audit-logs")).expect(200)["total"]
    server_id = await world.new_server()
    app_id = await world.new_app(server_id)
    (await world.admin.post("/api/projects", {})).expect(422)
    (await world.user.post("/api/projects", {"name": "x"})).expect(403)
    (await world.admin.delete(f"/api/servers/{server_id}")).expect(409)
    (await world.user.put(f"/api/apps/{app_id}", {"name": "x"})).expect(403)
    assert (await world.admin.get("/api/audit-logs")).expect(200)["total"] == before + 3


async def test_user_sees_own_entries_and_admin_sees_all(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    own = (await world.user.get("/api/audit-logs")).expect(200)
    assert {entry["username"] for entry in own["logs"]} == {USER}
    assert {entry["action"] for entry in own["logs"]} == {"LOGIN", "START"}
    assert own["total"] == 2
    everything = (await world.admin.get("/api/audit-logs")).expect(200)
    assert {entry["username"] for entry in everything["logs"]} >= {USER, "admin", "observer"}


async def test_pages_cover_every_entry_once(world: World) -> None:
    for number in range(7):
        await world.admin.post("/api/projects", {"name": f"p{number}"})
        world.clock.advance(1)
    total = (await world.admin.get("/api/audit-logs?limit=1")).expect(200)["total"]
    seen: list[Any] = []
    for offset in range(0, total, 3):
        page = (await world.admin.get(f"/api/audit-logs?limit=3&offset={offset}")).expect(200)
        assert (page["limit"], page["offset"], page["total"]) == (3, offset, total)
        seen += page["logs"]
    assert len({entry["id"] for entry in seen}) == len(seen) == total
    assert [e["createdAt"] for e in seen] == sorted((e["createdAt"] for e in seen), reverse=True)
    beyond = (await world.admin.get(f"/api/audit-logs?offset={total}")).expect(200)
    assert beyond["logs"] == []


async def test_rename_entry_names_the_changed_field(world: World) -> None:
    project = (await world.admin.post("/api/projects", {"name": "P"})).expect(201)
    await world.admin.put(f"/api/projects/{project['id']}", {"name": "Q", "color": "red"})
    (entry,) = await world.audit("UPDATE")
    assert entry["data"] == {"changed": ["name"]}
    assert (entry["resourceName"], "P" in entry["details"]) == ("Q", True)


async def test_start_entry_links_to_its_operation(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    reply = (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    await settle()
    (entry,) = await world.audit("START")
    assert entry["data"] == {"operationId": reply["operationId"], "timeout": 5}


async def test_password_is_never_in_an_entry(world: World) -> None:
    await world.nobody.post("/api/auth/login", {"username": "admin", "password": PASSWORD + "!"})
    assert PASSWORD not in json.dumps((await world.admin.get("/api/audit-logs")).expect(200))


async def test_filters_narrow_the_log_and_its_count(world: World) -> None:
    made = (await world.admin.post("/api/projects", {"name": "a"})).expect(201)
    (await world.admin.put(f"/api/projects/{made['id']}", {"name": "b"})).expect(200)
    world.clock.advance(60)
    await world.new_server()
    me = (await world.admin.get("/api/auth/verify")).json["user"]["id"]
    him = (await world.user.get("/api/auth/verify")).json["user"]["id"]

    async def found(query: str, status: int = 200) -> list[tuple[str, str]]:
        page = (await world.admin.get(f"/api/audit-logs?{query}")).expect(status)
        assert status != 200 or page["total"] == len(page["logs"])
        return [(e["action"], e["resourceType"]) for e in reversed(page["logs"])] if status == 200 else []

    everything = await found("")
    assert await found("action=UPDATE") == [("UPDATE", "project")]
    assert await found("action=CREATE&resourceType=server") == [("CREATE", "server")]
    assert await found("resourceType=nothing") == []
    assert await found(f"userId={him}") == [("LOGIN", "user")]
    assert len(await found(f"userId={me}")) == len(everything) - 1
    later = world.clock.now()
    millis = int(later.timestamp() * 1000)
    for moment in (str(millis), later.isoformat().replace("+00:00", "Z"), later.isoformat()):
        assert await found(f"from={moment}") == [("CREATE", "server")]
    assert await found(f"to={millis - 1}") == everything[:-1]
    assert await found(f"from={millis}&to={millis}") == [("CREATE", "server")]
    for wrong in (
        "from=yesterday",
        "to=1e3",
        "from=99999999999999999999",
        "userId=x",
        "from=0001-01-01T00:00:00%2B14:00",
    ):
        await found(wrong, 422)


async def test_filters_of_plain_user_show_only_own_entries(world: World) -> None:
    me = (await world.admin.get("/api/auth/verify")).json["user"]["id"]
    assert (await world.user.get(f"/api/audit-logs?userId={me}")).expect(200)["logs"] == []
    names = {e["username"] for e in (await world.user.get("/api/audit-logs?action=LOGIN")).expect(200)["logs"]}
    assert names == {"operator"}
