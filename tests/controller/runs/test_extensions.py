"""Extension of a run: exact, by compare-and-set, and never past an agent that would act on the old deadline."""

from collections.abc import Awaitable, Callable

import pytest
from factories import PATH, Reply, World
from fakes import EPOCH, FakeHost, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.transport import Deadline

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


@pytest.fixture
def app_id(running_app_id: str) -> str:
    """Return an app that runs for five minutes from now on."""
    return running_app_id


def held(host: FakeHost) -> Deadline:
    """Return the only deadline of a host's agent."""
    ((_, deadline),) = host.deadlines.values()
    return deadline


def downs(host: FakeHost) -> int:
    """Return how many stops a host ran."""
    return sum(kind is OperationKind.DOWN for kind, _ in host.commands)


async def extend(world: World, app_id: str, body: object) -> Reply:
    """Extend, and return the reply."""
    return await world.user.post(f"/api/apps/{app_id}/extend", body)


async def test_extension_moves_deadline_and_informs_agent(world: World, host: FakeHost, app_id: str) -> None:
    await world.clock.run(60)
    shown = (await extend(world, app_id, {"minutes": 3})).expect(200)
    assert (shown["stopAt"], shown["startedAt"], shown["status"]) == (NOW + 8 * MINUTE, NOW, "running")
    remaining = held(host).remaining
    assert remaining is not None
    assert remaining.total_seconds() == 7 * 60
    await world.clock.run(7 * 60 - 1)
    assert downs(host) == 0
    await world.clock.run(1)
    assert downs(host) == 1
    (entry,) = await world.audit("EXTEND")
    assert entry["data"] == {"minutes": 3, "stopAt": NOW + 8 * MINUTE}
    assert entry["details"] == "QMS Backend runs until 2026-03-04 05:14:07 UTC now."
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"] == {"reason": "timeout", "timeout": 8}


async def test_extension_accepts_earlier_end(world: World, host: FakeHost, app_id: str) -> None:
    shown = (await extend(world, app_id, {"until": NOW + 2 * MINUTE})).expect(200)
    assert shown["stopAt"] == NOW + 2 * MINUTE
    await world.clock.run(119)
    assert downs(host) == 0
    await world.clock.run(1)
    assert downs(host) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"minutes": 1, "until": NOW + MINUTE},
        {"minutes": None, "until": None},
        {"minutes": 0},
        {"minutes": -5},
        {"minutes": True},
        {"until": NOW},
        {"until": NOW - 1},
        {"until": 10**16},
    ],
)
async def test_invalid_extension_changes_nothing(world: World, app_id: str, body: dict[str, object]) -> None:
    (await extend(world, app_id, body)).expect(422)
    assert (await world.app(app_id))["stopAt"] == NOW + 5 * MINUTE


async def test_only_running_app_can_be_extended(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    (await world.user.post(f"/api/apps/{app_id}/stop", Prefer="respond-async")).expect(202)
    await settle()
    reply = (await extend(world, app_id, {"minutes": 1})).expect(409, "not_running")
    assert reply["error"] == "QMS Backend is being stopped: operator asked for it."
    host.let_go()
    await settle()
    (await extend(world, app_id, {"minutes": 1})).expect(409, "not_running")
    host.hold()
    (await world.user.post(f"/api/apps/{app_id}/start", Prefer="respond-async")).expect(202)
    await settle()
    (await extend(world, app_id, {"minutes": 1})).expect(409, "not_running")
    (await extend(world, "00000000-0000-4000-8000-000000000000", {"minutes": 1})).expect(404, "app_not_found")


async def test_extension_after_auto_stop_reports_it(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    await world.clock.run(5 * 60)
    reply = (await extend(world, app_id, {"minutes": 30})).expect(409, "not_running")
    assert reply["error"] == "QMS Backend is being stopped: its time is over."


async def test_extension_changes_nothing_when_agent_is_unreachable(world: World, host: FakeHost, app_id: str) -> None:
    before = await world.app(app_id)
    host.reachable = False
    await settle()
    reply = (await extend(world, app_id, {"minutes": 30})).expect(503, "host_unreachable")
    assert reply["error"].startswith("The app's agent could not be told, so nothing was changed: ")
    assert (await world.app(app_id))["stopAt"] == before["stopAt"]
    assert await world.audit("EXTEND") == []
    # A shorter deadline that the agent doesn't know is harmless: the controller stops the app.
    (await extend(world, app_id, {"until": NOW + MINUTE})).expect(200)
    assert (await world.app(app_id))["stopAt"] == NOW + MINUTE


async def test_run_with_extensions_is_capped_at_limit(world: World, host: FakeHost, app_id: str) -> None:
    world.settings = world.settings.model_copy(update={"max_run_minutes": 60})
    await world.restart()
    (await extend(world, app_id, {"minutes": 55})).expect(200)
    reply = (await extend(world, app_id, {"minutes": 1})).expect(409, "run_too_long")
    assert reply["error"].startswith(
        "A run may last 60 minutes at most, extensions included (MAX_RUN_MINUTES): this one"
    )
    (await extend(world, app_id, {"until": NOW + 60 * MINUTE + 1})).expect(409, "run_too_long")
    assert (await world.app(app_id))["stopAt"] == NOW + 60 * MINUTE
    reply = (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 61})).expect(422)
    assert reply["errors"][0]["field"] == "timeout"
    (await world.admin.put(f"/api/apps/{app_id}", {"autoStopTimeout": 61})).expect(422)
    (await world.admin.put(f"/api/apps/{app_id}", {"autoStopTimeout": 60})).expect(200)
    assert (await world.app(app_id))["stopAt"] == NOW + 60 * MINUTE, "the extension stays, as far as it may"
    assert host.reachable


async def test_timeout_above_new_limit_is_capped(world: World, host: FakeHost) -> None:
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    app_id = await world.new_app(server["id"], autoStopTimeout=600)
    world.settings = world.settings.model_copy(update={"max_run_minutes": 60})
    await world.restart()
    assert (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)["stopAt"] == NOW + 60 * MINUTE
    (await world.admin.put(f"/api/apps/{app_id}", {"name": "same", "autoStopTimeout": 600})).expect(200)
    assert host.reachable


Meanwhile = Callable[[], Awaitable[object]]


@pytest.mark.parametrize(
    ("verb", "body", "said"),
    [
        ("stop", None, "is being stopped by now"),
        ("restart", None, "was started anew meanwhile"),
        ("extend", {"minutes": 1}, "Somebody else moved the end meanwhile, to 2026-03-04 05:12:07 UTC"),
    ],
)
async def test_extension_losing_race_returns_conflict(
    world: World, host: FakeHost, app_id: str, verb: str, body: object, said: str
) -> None:
    """A concurrent request wins between informing the agent and storing the extension."""
    host.on_deadline = lambda: world.user.send(
        "POST", f"/api/apps/{app_id}/{verb}", body, headers={"Prefer": "respond-async"}
    )
    reply = (await extend(world, app_id, {"minutes": 30})).expect(409, "run_changed")
    assert said in reply["error"]
    await world.clock.run(5)
    app = await world.app(app_id)
    assert app["stopAt"] != NOW + 35 * MINUTE
    # The agent has to drop the deadline of the failed extension.
    row = await world.row(app_id)
    assert held(host).number == row.deadline_number
    assert held(host).run_id == row.run_id


async def test_restart_and_new_start_reset_the_run_limit(world: World, host: FakeHost, app_id: str) -> None:
    (await extend(world, app_id, {"minutes": 30})).expect(200)
    await world.clock.run(60)
    restarted = (await world.user.post(f"/api/apps/{app_id}/restart", {"timeout": 7})).expect(200)
    assert restarted["stopAt"] == NOW + 8 * MINUTE
    await settle()
    remaining = held(host).remaining
    assert remaining is not None
    assert remaining.total_seconds() == 7 * 60
    assert host.apps[PATH].containers


async def test_read_only_token_cannot_extend(world: World, app_id: str) -> None:
    made = await world.user.post("/api/tokens", {"name": "eye", "scopes": ["read"]})
    world.user.token = made.expect(201)["token"]
    (await extend(world, app_id, {"minutes": 1})).expect(403)
