"""Host contents in the API: containers, logs, and projects without an app."""

import pytest
from factories import PATH, World
from fakes import FakeHost, settle
from moorage_common.docker.states import OperationKind
from sse_reader import listening

SQLITE_ONLY = "What a host is asked for and shown hangs on no database."


@pytest.fixture
async def server_id(world: World, host: FakeHost) -> str:
    """Return its server."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    found: str = server["id"]
    return found


@pytest.fixture
async def app_id(world: World, host: FakeHost, server_id: str) -> str:
    """Return a running app on that host, with log lines."""
    host.app(PATH).says = ("one", "two", "three")
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    return app_id


async def test_services_list_existing_containers(world: World, host: FakeHost, app_id: str) -> None:
    host.set_running(PATH, ["web"])
    db, web = (await world.user.get(f"/api/apps/{app_id}/services")).expect(200)
    assert (web["service"], web["name"], web["state"], web["exitCode"]) == ("web", "shop-web-1", "running", None)
    assert (db["service"], db["state"], db["exitCode"]) == ("db", "exited", 137)
    assert web.keys() == {
        *("id", "name", "service", "state", "health", "exitCode", "image", "ports", "oneOff", "orphan", "restarts"),
        "since",
    }
    page = await world.user.get(f"/api/apps/{app_id}/services?limit=1&offset=1")
    assert (page.expect(200), page.headers["X-Total-Count"]) == ([web], "2")


async def test_unreachable_host_is_reported(world: World, host: FakeHost, app_id: str) -> None:
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    paths = [f"/api/apps/{app_id}/services", f"/api/apps/{app_id}/logs", f"/api/servers/{server['id']}/discover"]
    host.engine_problem = "It burns."
    for path in (paths[0], paths[2]):
        assert (await world.admin.get(path)).expect(503, "engine_unreachable")["error"] == "It burns."
    host.reachable = False
    for path in (*paths, f"{paths[1]}?follow=true"):
        (await world.admin.get(path)).expect(503, "host_unreachable")


async def test_logs_are_plain_text_one_entry_per_line(world: World, host: FakeHost, app_id: str) -> None:
    path = f"/api/apps/{app_id}/logs"
    reply = await world.user.get(path)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    lines = reply.text.splitlines()
    assert lines == [f"shop-{service}-1 | {text}" for service in ("web", "db") for text in ("one", "two", "three")]
    assert (await world.user.get(f"{path}?service=db&tail=1")).text == "shop-db-1 | three\n"
    assert (await world.user.get(f"{path}?tail=0")).text == ""
    assert (await world.user.get(f"{path}?since=2026-03-04T05:06:08Z")).text == ""
    assert (await world.user.get(f"{path}?since=2026-03-04T05:06:06Z")).text == reply.text
    for ago in ("10s", "1h30m", "1.5h", "1772600766", "1772600766.5", "1772600766000"):
        assert (await world.user.get(f"{path}?since={ago}")).text == reply.text
    host.write(PATH, "web", "größe")
    world.clock.advance(60)
    for ago in ("59s", "500ms", "1772600768"):
        assert (await world.user.get(f"{path}?since={ago}")).text == ""
    assert (await world.user.get(path)).text.splitlines()[-1] == "shop-web-1 | größe"


async def test_invalid_log_parameters_are_refused(world: World, app_id: str) -> None:
    path = f"/api/apps/{app_id}/logs"
    times = ("since=yesterday", "since=5d", "since=10m ago")
    for query in ("tail=-1", "tail=10001", "tail=x", "service=%00", "follow", "follow=2", "timestamps=ja", *times):
        (await world.user.get(f"{path}?{query}")).expect(422, "invalid_field")
    for query in ("service=nobody", "service=nobody&follow=true"):
        (await world.user.get(f"{path}?{query}")).expect(404, "service_not_found")
    (await world.user.get("/api/apps/00000000-0000-0000-0000-000000000000/logs")).expect(404, "app_not_found")


async def test_log_timestamps_are_shown_on_request(world: World, host: FakeHost, app_id: str) -> None:
    path = f"/api/apps/{app_id}/logs?tail=1&service=web"
    line = host.app(PATH).logs[2]
    shown = f"shop-web-1 | {line.time} three"
    for word in ("1", "true", "TRUE", "yes", "On"):
        assert (await world.user.get(f"{path}&timestamps={word}")).text == f"{shown}\n"
        async with listening(world.user, f"{path}&follow={word}&timestamps={word}") as stream:
            event = await stream.next()
            assert event is not None
            assert (event.data, event.id) == (shown, line.time)
    for word in ("0", "false", "No", "off"):
        assert (await world.user.get(f"{path}&timestamps={word}&follow={word}")).text == "shop-web-1 | three\n"
    assert (await world.user.get(f"/api/apps/{app_id}/logs?since={line.time}&service=web")).text == ""


async def test_boolean_words_are_accepted_for_every_flag(world: World, app_id: str) -> None:
    (await world.admin.delete(f"/api/apps/{app_id}?force=perhaps")).expect(422, "invalid_field")
    (await world.admin.delete(f"/api/apps/{app_id}?force=0")).expect(409, "app_running")
    (await world.admin.delete(f"/api/apps/{app_id}?force=YES")).expect(200)


async def test_followed_logs_stream_live_and_resume_after_cut(world: World, host: FakeHost, app_id: str) -> None:
    path = f"/api/apps/{app_id}/logs?follow=true"
    async with listening(world.user, f"{path}&tail=1&service=web") as stream:
        first = await stream.next()
        assert first is not None
        assert first.data == "shop-web-1 | three"
        host.write(PATH, "db", "not asked for")
        host.write(PATH, "web", "four")
        second = await stream.next()
        assert second is not None
        assert second.data == "shop-web-1 | four"
    host.write(PATH, "web", "five")
    async with listening(world.user, f"{path}&tail=0", last_id=second.id) as stream:
        third = await stream.next()
        assert third is not None
        assert third.data == "shop-web-1 | five"
        host.reachable = False
        assert await stream.next() is None, "the browser comes again, and is told why not"
    host.reachable = True
    await settle()


async def test_unregistered_project_is_discovered_and_adopted(
    world: World, host: FakeHost, app_id: str, server_id: str
) -> None:
    host.set_running("/srv/apps/found", ["web", "db"])
    host.set_running("/srv/apps/stopped", [], ["job"])
    host.set_running("relative", ["web"])
    path = f"/api/servers/{server_id}/discover"
    found = (await world.admin.get(path)).expect(200)
    by_hand: dict[str, object] = {"configFiles": [], "environmentFile": None, "composeFiles": []}
    assert found == [
        {"name": "found", "cdPath": "/srv/apps/found", "status": "running", "services": ["db", "web"]} | by_hand,
        {"name": "stopped", "cdPath": "/srv/apps/stopped", "status": "stopped", "services": ["job"]} | by_hand,
    ]
    (await world.user.get(path)).expect(403, "forbidden")
    adopted = await world.new_app(server_id, name="found", cdPath="/srv/apps/found", autoStopTimeout=30)
    app = await world.app(adopted)
    assert (app["status"], app["health"]) == ("running", "healthy")
    assert app["stopAt"] is not None
    names = [each["name"] for each in (await world.admin.get(path)).expect(200)]
    assert names == ["stopped"]
    assert (await world.app(app_id))["status"] == "running"
    assert host.commands == [(OperationKind.UP, PATH)], "to adopt is not to start"


async def test_cut_watch_does_not_turn_server_offline(world: World, host: FakeHost, app_id: str) -> None:
    before = await world.audit("STATUS_CHANGE")
    for _ in range(3):
        host.break_connections()
        await settle()
        (server,) = (await world.admin.get("/api/servers")).expect(200)
        assert server["status"] == "online"
        await world.clock.run(20)
    app = await world.app(app_id)
    assert (app["status"], app["health"]) == ("running", "healthy")
    assert await world.audit("STATUS_CHANGE") == before
    host.reachable = False
    await settle()
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    assert server["status"] == "offline"


async def test_manual_container_restart_does_not_extend_run(world: World, host: FakeHost, app_id: str) -> None:
    before = await world.app(app_id)
    host.set_running(PATH, [])
    await settle()
    assert (await world.app(app_id))["status"] == "stopped"
    world.clock.advance(60)
    host.set_running(PATH, ["web"])
    await settle()
    after = await world.app(app_id)
    assert (after["status"], after["stopAt"], after["startedAt"]) == ("running", before["stopAt"], before["startedAt"])
