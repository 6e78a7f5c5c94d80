"""Auto-stop: at the deadline to the second, once, through changes, faults and outages, until no container is left."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import timedelta

import pytest
from factories import PATH, World
from fakes import EPOCH, FakeHost, Plan, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.services.runs.run_expiry import RunExpiry
from moorage_controller.store.tables import apps

NOW = int(EPOCH.timestamp() * 1000)
SECONDS = 300


pytestmark = pytest.mark.usefixtures("steady_jitter")


@pytest.fixture
def app_id(timed_app_id: str) -> str:
    """Return an app whose runs last five minutes."""
    return timed_app_id


def downs(host: FakeHost) -> list[str]:
    """Return the directories of the stops that a host ran."""
    return [path for kind, path in host.commands if kind is OperationKind.DOWN]


async def start(world: World, app_id: str, minutes: int = 5) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": minutes})).expect(200)


async def status(world: World, app_id: str) -> str:
    return str((await world.app(app_id))["status"])


async def test_app_is_stopped_exactly_at_deadline(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 1)
    assert downs(host) == []
    assert await status(world, app_id) == "running"
    await world.clock.run(1)
    assert downs(host) == [PATH]
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["stopAt"]) == ("stopped", None, None)
    assert host.app(PATH).containers == []


async def test_auto_stop_is_audited_once_with_documented_details(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS + 120)
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"] == {"reason": "timeout", "timeout": 5}
    assert (entry["username"], entry["userId"], entry["resourceType"]) == ("auto-stop", None, "app")
    assert (entry["resourceId"], entry["resourceName"]) == (app_id, "QMS Backend")
    assert entry["createdAt"] == "2026-03-04T05:11:07.000Z"
    assert await world.audit("STOP") == []
    assert len(downs(host)) == 1


async def test_auto_stop_operation_has_actor_auto_stop(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    host.hold()
    await world.clock.run(SECONDS)
    app = await world.app(app_id)
    assert app["status"] == "stopping"
    operation = await world.operation(app["operationId"])
    assert (operation["kind"], operation["actor"], operation["state"]) == ("down", "auto-stop", "running")
    (await world.admin.post(f"/api/operations/{operation['id']}/cancel")).expect(409, "not_cancellable")
    assert await world.audit("AUTO_STOP") == [], "it is told when it is done"
    host.let_go()
    await settle()
    assert len(await world.audit("AUTO_STOP")) == 1


async def test_manual_stop_cancels_auto_stop(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    await world.clock.run(SECONDS + 60)
    assert len(downs(host)) == 1
    assert await world.audit("AUTO_STOP") == []


async def test_longer_timeout_moves_deadline_immediately(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 10)
    changed = (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 6})).expect(200)
    assert changed["stopAt"] == NOW + 6 * 60_000
    await world.clock.run(69)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"] == {"reason": "timeout", "timeout": 6}


async def test_shorter_timeout_moves_deadline_and_elapsed_one_stops_app(
    world: World, host: FakeHost, app_id: str
) -> None:
    await start(world, app_id)
    await world.clock.run(90)
    (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 2})).expect(200)
    await world.clock.run(29)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]
    await start(world, app_id)
    await world.clock.run(61)
    (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 1})).expect(200)
    await settle()
    assert downs(host) == [PATH, PATH]


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_new_run_replaces_the_old_deadline(world: World, host: FakeHost, app_id: str, verb: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 1)
    (await world.user.post(f"/api/apps/{app_id}/{verb}", {"timeout": 5})).expect(200)
    await world.clock.run(SECONDS - 1)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]


async def test_run_changed_after_being_due_is_not_stopped(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare-and-set: the run is extended between the check and the stop."""
    await start(world, app_id)
    plain = RunExpiry.stop

    async def extended_first(self: RunExpiry, due: Sequence[apps.App]) -> object:
        if [app.stop_at for app in due] == [EPOCH + timedelta(minutes=5)]:
            (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 10})).expect(200)
        return await plain(self, due)

    monkeypatch.setattr(RunExpiry, "stop", extended_first)
    await world.clock.run(SECONDS + 60)
    assert downs(host) == []
    assert await status(world, app_id) == "running"
    await world.clock.run(SECONDS - 60)
    assert downs(host) == [PATH]


async def test_incomplete_stop_is_retried_until_containers_are_gone(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.DOWN] = Plan(1, b"container is stuck\n", leaves=("db",))
    await start(world, app_id)
    await world.clock.run(SECONDS)
    app = await world.app(app_id)
    assert (app["status"], app["lastError"]) == ("running", "container is stuck")
    await world.clock.run(60)
    tries = len(downs(host))
    assert 3 <= tries <= 10
    assert await world.audit("AUTO_STOP") == []
    host.plans.clear()
    await world.clock.run(61)
    assert await status(world, app_id) == "stopped"
    assert len(downs(host)) == tries + 1
    assert len(await world.audit("AUTO_STOP")) == 1
    await world.clock.run(120)
    assert len(downs(host)) == tries + 1


async def test_unavailable_host_is_stopped_on_when_it_returns(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    host.reachable = False
    # The attempts come 0, 2, 6, 14, 30, 62, 122 and 182 seconds after the deadline: no more soon.
    await world.clock.run(SECONDS + 125)
    assert downs(host) == []
    app = await world.app(app_id)
    assert app["status"] == "running"
    assert app["stopAt"] == NOW + SECONDS * 1000
    host.reachable = True
    # The watch reconnects within 15 seconds, and its snapshot suffices.
    await world.clock.run(15)
    assert downs(host) == [PATH]
    assert await status(world, app_id) == "stopped"
    assert len(await world.audit("AUTO_STOP")) == 1


async def test_run_due_during_controller_downtime_is_stopped_at_startup(
    world: World, host: FakeHost, app_id: str
) -> None:
    await start(world, app_id)
    await world.stop()
    world.clock.advance(SECONDS * 3)
    await world.start()
    await settle()
    assert downs(host) == [PATH]
    assert len(await world.audit("AUTO_STOP")) == 1


async def test_deadline_outlives_a_restart_of_the_controller(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(60)
    await world.restart()
    await world.clock.run(SECONDS - 61)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]


async def test_auto_stop_survives_controller_crash_and_is_audited_once(
    world: World, host: FakeHost, app_id: str
) -> None:
    await start(world, app_id)
    host.hold()
    await world.clock.run(SECONDS)
    await world.stop()
    host.let_go()
    await settle()
    await world.start()
    await world.clock.run(5)
    assert await status(world, app_id) == "stopped"
    assert len(downs(host)) == 1
    assert len(await world.audit("AUTO_STOP")) == 1


async def test_leftovers_of_failed_start_are_stopped_at_deadline(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.UP] = Plan(1, b"web failed\n", leaves=("db",))
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(502)
    await world.clock.run(SECONDS - 1)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]
    assert host.app(PATH).containers == []


async def test_unobserved_leftovers_of_lost_start_are_stopped(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await settle()
    host.engine_problem = "The Docker Engine doesn't answer."
    host.lose_runs()
    host.set_running(PATH, ["web"])
    (await calling).expect(502, "operation_lost")
    host.let_go()
    await world.clock.run(SECONDS)
    assert downs(host) == []
    assert (await world.app(app_id))["stopAt"] == NOW + SECONDS * 1000
    host.engine_problem = ""
    await settle()
    assert downs(host) == [PATH]


async def test_containers_started_manually_get_a_run_and_are_stopped(world: World, host: FakeHost, app_id: str) -> None:
    host.set_running(PATH, ["web"])
    await settle()
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"], app["stopAt"]) == ("running", NOW, NOW + SECONDS * 1000)
    await world.clock.run(SECONDS - 1)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"] == {"reason": "timeout", "timeout": 5}


async def test_app_that_exited_by_itself_is_not_stopped(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    host.set_running(PATH, [])
    await settle()
    assert await status(world, app_id) == "stopped"
    await world.clock.run(SECONDS + 60)
    assert downs(host) == []


async def test_simultaneously_due_apps_are_both_stopped(world: World, host: FakeHost, app_id: str) -> None:
    app = await world.app(app_id)
    other = await world.new_app(app["serverId"], projectId=app["projectId"], cdPath="/srv/other", name="Other")
    for each in (app_id, other):
        await start(world, each)
    await world.clock.run(SECONDS)
    assert sorted(downs(host)) == sorted([PATH, "/srv/other"])
    assert [await status(world, each) for each in (app_id, other)] == ["stopped", "stopped"]


async def test_hung_host_does_not_delay_other_hosts(world: World, host: FakeHost, app_id: str) -> None:
    second_server, second = await world.new_host("10.0.0.2:7443", name="Second")
    other = await world.new_app(second_server, cdPath="/srv/other")
    for each in (app_id, other):
        await start(world, each)
    host.silent = True
    await world.clock.run(SECONDS)
    assert downs(host) == []
    assert downs(second) == ["/srv/other"]
    assert await status(world, other) == "stopped"


async def test_hung_stop_does_not_delay_others_on_same_host(world: World, host: FakeHost, app_id: str) -> None:
    app = await world.app(app_id)
    other = await world.new_app(app["serverId"], projectId=app["projectId"], cdPath="/srv/other", name="Other")
    await start(world, app_id, 5)
    await start(world, other, 6)
    host.hold()
    await world.clock.run(SECONDS)
    host.let_go_of("/srv/other")
    await world.clock.run(60)
    assert [await status(world, each) for each in (app_id, other)] == ["stopping", "stopped"]


async def test_deadline_passing_during_restart_does_not_end_new_run(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 1)
    host.hold()
    await world.begin(app_id, "restart", {"timeout": 5})
    await world.clock.run(60)
    assert downs(host) == []
    host.let_go()
    await settle()
    assert (await world.app(app_id))["stopAt"] == NOW + (2 * SECONDS + 59) * 1000
    await world.clock.run(SECONDS - 1)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]


async def test_failed_restart_past_old_deadline_is_followed_by_stop(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 1)
    host.plans[OperationKind.RESTART] = Plan(1, b"no\n", leaves=("web",))
    host.hold()
    await world.begin(app_id, "restart", {"timeout": 5})
    await world.clock.run(30)
    host.let_go()
    await settle()
    assert downs(host) == [PATH]
    assert await status(world, app_id) == "stopped"


async def test_clock_jump_over_deadline_does_not_lose_it(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    await settle()
    world.clock.advance(SECONDS * 10)
    await settle()
    assert downs(host) == [PATH]


async def test_run_of_deleted_app_stops_nothing(world: World, host: FakeHost, app_id: str) -> None:
    await start(world, app_id)
    (await world.admin.delete(f"/api/apps/{app_id}?force=true")).expect(200)
    await world.clock.run(SECONDS + 60)
    assert len(downs(host)) == 1


async def test_auto_stop_continues_after_database_outage(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(world, app_id)
    await world.clock.run(SECONDS - 1)
    with monkeypatch.context() as broken:
        broken.setattr(apps, "due", None)
        await world.clock.run(4)
        assert downs(host) == []
    await world.clock.run(5)
    assert downs(host) == [PATH]


async def test_deadline_in_database_alone_triggers_stop(world: World, host: FakeHost, app_id: str) -> None:
    """Set by another controller or a restored backup: only the row exists, without a notification."""
    host.app(PATH).containers.clear()
    database = world.database()
    stop_at = world.clock.now() + timedelta(seconds=45)
    values = {"status": "running", "run_id": uuid.uuid4(), "run_timeout": 1, "stop_at": stop_at}
    async with database.write() as connection:
        await apps.change(connection, uuid.UUID(app_id), {**values, "started_at": world.clock.now()})
    await database.close()
    await world.clock.run(44)
    assert downs(host) == []
    await world.clock.run(1)
    assert downs(host) == [PATH]
