"""Start and stop as an API client sees them: documented replies, joining, waiting, hanging up."""

import asyncio
import contextlib
from uuid import UUID

import pytest
from factories import PATH, World
from fakes import EPOCH, FakeHost, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.transport import Order
from moorage_controller.store.tables import operations

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


@pytest.fixture
async def app_id(world: World, host: FakeHost) -> str:
    """Return an app on that host."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.new_app(server["id"], appUrl="http://192.168.1.100:8080")


async def test_start_and_stop_replies_match_the_guide(world: World, app_id: str) -> None:
    reply = (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 60})).expect(200)
    guide = {
        "success": True,
        "appId": app_id,
        "status": "running",
        "startedAt": NOW,
        "message": "Application started successfully",
    }
    assert {name: reply[name] for name in guide} == guide
    assert reply["stopAt"] == reply["timer_ends_at"] == NOW + 60 * MINUTE
    assert reply["app_url"] == "http://192.168.1.100:8080"
    assert "Container" in reply["output"]
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["health"]) == ("running", NOW, "healthy")
    (server,) = (await world.user.get("/api/servers")).expect(200)
    assert server["runningAppsCount"] == 1
    # Dashboards stop with a content type, and no content.
    stopped = await world.user.send("POST", f"/api/apps/{app_id}/stop", data=b"")
    reply = stopped.expect(200)
    guide = {"success": True, "appId": app_id, "status": "stopped", "message": "Application stopped successfully"}
    assert {name: reply[name] for name in guide} == guide
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["stopAt"], app["operationId"]) == ("stopped", None, None, None)


@pytest.mark.parametrize(
    ("body", "minutes"),
    [(None, 25), ({}, 25), ({"timeout": 5}, 5), ({"timeout_minutes": 7}, 7), ({"timeout": None}, 25)],
)
async def test_run_length_comes_from_start_or_app(
    world: World, app_id: str, body: dict[str, object] | None, minutes: int
) -> None:
    (await world.admin.put(f"/api/apps/{app_id}", {"autoStopTimeout": 25})).expect(200)
    reply = (await world.user.post(f"/api/apps/{app_id}/start", body)).expect(200)
    assert reply["stopAt"] == NOW + minutes * MINUTE
    app = await world.app(app_id)
    assert (app["autoStopTimeout"], app["defaultTimeout"]) == (minutes, 25)


async def test_operation_is_recorded_before_it_is_sent(world: World, host: FakeHost, app_id: str) -> None:
    found: list[tuple[str, str, str]] = []
    database = world.database()

    async def look(order: Order) -> None:
        async with database.read() as connection:
            operation = await operations.get(connection, order.operation_id)
        assert operation is not None
        found.append((operation.kind, operation.state, (await world.row(app_id)).status))

    host.on_start = look
    for verb in ("start", "restart", "stop"):
        (await world.user.post(f"/api/apps/{app_id}/{verb}")).expect(200)
    assert found == [("up", "running", "starting"), ("restart", "running", "starting"), ("down", "running", "stopping")]
    await database.close()


async def test_app_status_is_starting_and_stopping_meanwhile(world: World, host: FakeHost, app_id: str) -> None:
    for verb, during, after in (("start", "starting", "running"), ("stop", "stopping", "stopped")):
        host.hold()
        operation_id = await world.begin(app_id, verb)
        app = await world.app(app_id)
        assert (app["status"], app["operationId"]) == (during, operation_id)
        assert (await world.operation(operation_id))["state"] == "running"
        host.let_go()
        await settle()
        app = await world.app(app_id)
        assert (app["status"], app["operationId"]) == (after, None)


async def test_provisional_deadline_is_not_shown(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    await world.begin(app_id)
    app = await world.app(app_id)
    assert (app["startedAt"], app["stopAt"]) == (None, None)
    assert (await world.row(app_id)).stop_at is not None


async def test_second_start_joins_first_and_keeps_its_timeout(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    first = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5}))
    await settle()
    second = asyncio.create_task(world.admin.post(f"/api/apps/{app_id}/start", {"timeout": 90}))
    await settle()
    assert not first.done()
    assert not second.done()
    host.let_go()
    replies = [(await task).expect(200) for task in (first, second)]
    assert replies[0] == replies[1]
    assert replies[0]["stopAt"] == NOW + 5 * MINUTE
    assert host.commands == [(OperationKind.UP, PATH)]
    assert len(await world.audit("START")) == 1


async def test_concurrent_starts_are_sent_once(world: World, host: FakeHost, app_id: str) -> None:
    replies = await asyncio.gather(*(world.user.post(f"/api/apps/{app_id}/start") for _ in range(20)))
    # A request after the end of the first starts a running app, as its own operation.
    ids = {reply.expect(200)["operationId"] for reply in replies}
    assert len(host.commands) == len(ids)
    assert len(ids) < 20


async def test_second_stop_joins_the_first(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.hold()
    first = await world.begin(app_id, "stop")
    assert await world.begin(app_id, "stop") == first
    host.let_go()
    await settle()
    assert [kind.value for kind, _ in host.commands] == ["up", "down"]


@pytest.mark.parametrize(
    ("running", "others"),
    [("start", ("stop", "restart")), ("stop", ("start", "restart")), ("restart", ("start", "stop"))],
)
async def test_opposite_operation_is_refused_while_one_is_in_flight(
    world: World, host: FakeHost, app_id: str, running: str, others: tuple[str, ...]
) -> None:
    host.hold()
    await world.begin(app_id, running)
    for other in others:
        reply = await world.user.post(f"/api/apps/{app_id}/{other}")
        reply.expect(409, "operation_in_progress")
    assert len(host.commands) == 1
    (await world.admin.delete(f"/api/apps/{app_id}")).expect(409, "app_running")


async def test_respond_async_returns_operation_immediately(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    reply = await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5}, Prefer="respond-async")
    body = reply.expect(202)
    assert reply.headers["Location"] == f"/api/operations/{body['id']}"
    assert (body["kind"], body["state"], body["appId"], body["actor"]) == ("up", "queued", app_id, "operator")
    host.let_go()
    await settle()
    shown = (await world.user.get(reply.headers["Location"])).expect(200)
    assert (shown["state"], shown["exitCode"], shown["error"], shown["transport"]) == ("succeeded", 0, None, "agent")
    assert (shown["createdAt"], shown["startedAt"], shown["finishedAt"]) == (NOW, NOW, NOW)


async def test_prefer_wait_bounds_the_wait(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    reply = await world.user.post(f"/api/apps/{app_id}/start", Prefer="wait=0")
    assert reply.expect(202)["state"] in {"queued", "running"}
    waiting = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start", Prefer="foo, wait=600"))
    await settle()
    assert not waiting.done()
    host.let_go()
    assert (await waiting).expect(200)["operationId"] == reply.json["id"]


async def test_caller_disconnect_changes_nothing(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await settle()
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    await settle()
    assert (await world.app(app_id))["status"] == "starting"
    host.let_go()
    await settle()
    assert (await world.app(app_id))["status"] == "running"


async def test_restart_is_one_operation_with_a_new_run(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    old = await world.row(app_id)
    await world.clock.run(60)
    reply = (await world.user.post(f"/api/apps/{app_id}/restart", {"timeout": 10})).expect(200)
    assert (reply["startedAt"], reply["stopAt"]) == (NOW + MINUTE, NOW + 11 * MINUTE)
    assert reply["message"] == "Application restarted successfully"
    assert (await world.row(app_id)).run_id != old.run_id
    assert [kind.value for kind, _ in host.commands] == ["up", "restart"]


async def test_start_of_running_app_runs_up_again_with_a_new_run(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    await world.clock.run(60)
    reply = (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    assert reply["stopAt"] == NOW + 6 * MINUTE
    assert [kind.value for kind, _ in host.commands] == ["up", "up"]


async def test_stop_of_stopped_app_runs_down(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    assert [kind.value for kind, _ in host.commands] == ["down"]


async def test_operations_of_different_apps_run_concurrently(world: World, host: FakeHost, app_id: str) -> None:
    app = await world.app(app_id)
    other = await world.new_app(app["serverId"], projectId=app["projectId"], cdPath="/srv/other", name="Other")
    host.hold()
    for each in (app_id, other):
        await world.begin(each)
    assert len(host.commands) == 2
    host.let_go()
    await settle()
    assert [(await world.app(each))["status"] for each in (app_id, other)] == ["running", "running"]
    (server,) = (await world.user.get("/api/servers")).expect(200)
    assert server["runningAppsCount"] == 2


async def test_operations_are_listed_newest_first_and_filtered(world: World, app_id: str) -> None:
    ids = []
    for verb in ("start", "stop", "start"):
        ids.append((await world.user.post(f"/api/apps/{app_id}/{verb}")).expect(200)["operationId"])
        await world.clock.run(1)
    listed = (await world.user.get("/api/operations")).expect(200)
    assert [operation["id"] for operation in listed] == ids[::-1]
    server_id = listed[0]["serverId"]
    for query, count in (
        (f"appId={app_id}", 3),
        (f"appId={server_id}", 0),
        (f"serverId={server_id}", 3),
        ("state=succeeded", 3),
        ("state=running", 0),
        (f"appId={app_id}&state=succeeded", 3),
        ("state=nonsense", 0),
    ):
        assert len((await world.user.get(f"/api/operations?{query}")).expect(200)) == count, query
    assert all(UUID(operation["id"]) for operation in listed)
