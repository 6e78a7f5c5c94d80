"""The end of a run: warnings, overdue runs, and clock jumps."""

import itertools
import time
from datetime import datetime, timedelta

import pytest
import structlog
from factories import PATH, World
from fakes import EPOCH, FakeHost, Plan, settle
from moorage_common.clock import SystemClock
from moorage_common.docker.states import OperationKind
from moorage_controller.services.runs import clock_jumps as timekeeper
from moorage_controller.settings import Settings
from moorage_lab.waiting import eventually_async
from sse_reader import Listener, listening

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000
MARKS = itertools.count()


pytestmark = pytest.mark.usefixtures("steady_jitter")


@pytest.fixture
async def app_id(world: World, timed_app_id: str) -> str:
    """Return an app that runs for 30 minutes from now on."""
    (await world.user.put(f"/api/apps/{timed_app_id}", {"autoStopTimeout": 30})).expect(200)
    (await world.user.post(f"/api/apps/{timed_app_id}/start")).expect(200)
    await settle()
    return timed_app_id


def downs(host: FakeHost) -> int:
    """Return how many stops a host ran."""
    return sum(kind is OperationKind.DOWN for kind, _ in host.commands)


async def told(world: World, stream: Listener, app_id: str) -> list[str]:
    """Return the names of the events of an app since the last call, up to a change that is made now."""
    name = f"mark {next(MARKS)}"
    (await world.admin.put(f"/api/apps/{app_id}", {"name": name})).expect(200)
    names: list[str] = []
    while True:
        event = await stream.next()
        assert event is not None
        if event.name == "app" and event.json["name"] == name:
            return names
        if event.name == "stopping_soon":
            assert event.json["id"] == app_id
            names.append(event.name)


async def test_warnings_are_sent_once_ten_and_two_minutes_before_end(world: World, host: FakeHost, app_id: str) -> None:
    assert host.reachable
    async with listening(world.user, "/api/events") as stream:
        await world.clock.run(20 * 60 - 1)
        assert await told(world, stream, app_id) == []
        await world.clock.run(1)
        assert await told(world, stream, app_id) == ["stopping_soon"]
        await world.clock.run(8 * 60 - 1)
        assert await told(world, stream, app_id) == []
        await world.clock.run(1)
        assert await told(world, stream, app_id) == ["stopping_soon"]
        await world.clock.run(60)
        assert await told(world, stream, app_id) == []


async def test_extension_repeats_warnings_and_controller_restart_does_not(world: World, app_id: str) -> None:
    await world.clock.run(21 * 60)
    await world.restart()
    async with listening(world.user, "/api/events") as stream:
        await world.clock.run(60)
        assert await told(world, stream, app_id) == []
        (await world.user.post(f"/api/apps/{app_id}/extend", {"minutes": 20})).expect(200)
        await world.clock.run(18 * 60)
        assert await told(world, stream, app_id) == ["stopping_soon"]
        (await world.user.post(f"/api/apps/{app_id}/extend", {"until": NOW + 43 * MINUTE})).expect(200)
        await world.clock.run(60)
        assert await told(world, stream, app_id) == ["stopping_soon"], "two minutes before"


async def test_short_run_gets_only_the_applicable_warning(world: World, app_id: str) -> None:
    async with listening(world.user, "/api/events") as stream:
        (await world.user.post(f"/api/apps/{app_id}/restart", {"timeout": 5})).expect(200)
        await world.clock.run(3 * 60 - 1)
        assert await told(world, stream, app_id) == []
        await world.clock.run(2)
        assert await told(world, stream, app_id) == ["stopping_soon"]


async def test_warning_times_are_configurable_and_can_be_disabled(world: World, app_id: str) -> None:
    for minutes, expected in (("5", ["stopping_soon"]), ("", [])):
        world.settings = world.settings.model_copy(update={"stopping_soon_minutes": minutes})
        await world.restart()
        (await world.user.post(f"/api/apps/{app_id}/restart", {"timeout": 6})).expect(200)
        async with listening(world.user, "/api/events") as stream:
            await world.clock.run(5 * 60)
            assert await told(world, stream, app_id) == expected


async def test_app_that_cannot_be_stopped_is_overdue_until_stopped(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.DOWN] = Plan(1, b"container is stuck\n", leaves=("db",))
    await world.clock.run(30 * 60 + 59)
    assert (await world.app(app_id))["overdue"] is False
    await world.clock.run(1)
    app = await world.app(app_id)
    assert (app["overdue"], app["stopAt"]) == (True, NOW + 30 * MINUTE)
    (entry,) = [each for each in await world.audit("STATUS_CHANGE") if each["resourceId"] == app_id]
    assert entry["username"] == "auto-stop"
    assert entry["data"]["reason"] == "overdue"
    assert "should have been stopped at 2026-03-04 05:36:07 UTC" in entry["details"]
    host.plans.clear()
    await world.clock.run(70)
    app = await world.app(app_id)
    assert (app["status"], app["overdue"]) == ("stopped", False)
    (entry,) = await world.audit("AUTO_STOP")
    assert 60 <= entry["data"]["secondsLate"] <= 130
    assert "seconds late" in entry["details"]


async def test_app_on_unavailable_host_is_overdue_without_record_per_attempt(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.reachable = False
    await world.clock.run(34 * 60)
    assert (await world.app(app_id))["overdue"] is True
    assert [each["kind"] for each in (await world.user.get("/api/operations")).expect(200)] == ["up"]
    (await world.user.post(f"/api/apps/{app_id}/extend", {"until": NOW + 60 * MINUTE})).expect(503)
    host.reachable = True
    await world.clock.run(20)
    assert (await world.app(app_id))["status"] == "stopped"
    assert downs(host) == 1


async def test_extension_clears_overdue(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.DOWN] = Plan(1, b"container is stuck\n", leaves=("db",))
    await world.clock.run(30 * 60 + 61)
    app = (await world.user.post(f"/api/apps/{app_id}/extend", {"minutes": 10})).expect(200)
    assert app["overdue"] is False
    assert app["stopAt"] == NOW + 30 * MINUTE + 61_000 + 10 * MINUTE, "the minutes count from now"


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")
async def test_sixteen_hung_hosts_do_not_delay_stops_on_others(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/restart", {"timeout": 5})).expect(200)
    for n in range(16):
        server_id, slow = await world.new_host(f"10.1.0.{n}:7443", name=f"slow {n}")
        for k in range(4):
            other = await world.new_app(server_id, cdPath=f"/srv/apps/a{k}", name=f"a{n}-{k}")
            (await world.user.post(f"/api/apps/{other}/start", {"timeout": 4})).expect(200)
        slow.hold()
    await world.clock.run(5 * 60)
    assert downs(host) == 1


@pytest.mark.parametrize("jump", [3600, -3600, 5, 20 * 3600])
async def test_clock_jump_makes_no_stop_early_or_late(
    world: World, host: FakeHost, app_id: str, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timekeeper, "log", structlog.get_logger())
    await world.clock.run(10 * 60)
    with structlog.testing.capture_logs() as logged:
        world.clock.jump(jump)
        await world.clock.run(20 * 60 - 1)
    assert {"event": "clock_jumped", "seconds": jump, "shifted": True, "runs": 1, "log_level": "warning"} in logged
    assert downs(host) == 0
    app = await world.app(app_id)
    assert (app["stopAt"], app["startedAt"]) == (NOW + 30 * MINUTE + jump * 1000, NOW + jump * 1000)
    await world.clock.run(1)
    assert downs(host) == 1
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"] == {"reason": "timeout", "timeout": 30}
    assert host.app(PATH).containers == []


async def test_resumed_machine_stops_due_runs(world: World, host: FakeHost, app_id: str) -> None:
    world.clock.advance(45 * 60)
    await settle()
    assert downs(host) == 1
    assert (await world.app(app_id))["status"] == "stopped"


class WrongClock(SystemClock):
    """This machine's clock with an offset."""

    def __init__(self, seconds: int) -> None:
        self._wrong = timedelta(seconds=seconds)

    def now(self) -> datetime:
        """Return the wall time, wrong."""
        return super().now() + self._wrong


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True, scope="session")
@pytest.mark.parametrize("wrong", [60, -60])
async def test_skewed_controller_follows_database_clock(settings: Settings, wrong: int) -> None:
    """In real time: PostgreSQL's own clock can't be moved."""
    world = World(settings)
    try:
        await world.start(WrongClock(wrong))
        _, host = await world.new_host()
        (server,) = (await world.admin.get("/api/servers")).expect(200)
        app_id = await world.new_app(server["id"])
        started = (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
        assert abs(started["startedAt"] / 1000 - time.time()) < 5
        until = started["startedAt"] + 3000
        (await world.user.post(f"/api/apps/{app_id}/extend", {"until": until})).expect(200)
        await eventually_async(lambda: downs(host) == 1, timeout=20, what="the stop")
        (operation, *_) = (await world.user.get("/api/operations")).expect(200)
        assert until <= operation["createdAt"] < until + 3000
    finally:
        await world.close()


async def test_clock_jump_sends_correct_remaining_time_to_agent(world: World, host: FakeHost, app_id: str) -> None:
    await world.clock.run(60)
    world.clock.jump(3600)
    host.deadlines.clear()
    host.push(host.observation(PATH))
    await settle()
    ((_, deadline),) = host.deadlines.values()
    assert deadline.remaining == timedelta(minutes=29)
    shown = (await world.user.post(f"/api/apps/{app_id}/extend", {"minutes": 10})).expect(200)
    assert shown["stopAt"] == NOW + 40 * MINUTE + 3_600_000


async def test_restart_over_the_old_deadline_raises_no_alarm(world: World, host: FakeHost, app_id: str) -> None:
    await world.clock.run(30 * 60 - 5)
    host.hold()
    await world.begin(app_id, "restart")
    await world.clock.run(100)
    assert (await world.app(app_id))["overdue"] is False
    host.let_go()
    await settle()
    assert (await world.app(app_id))["status"] == "running"
    assert [each for each in await world.audit("STATUS_CHANGE") if each["resourceId"] == app_id] == []


async def test_slow_stop_raises_the_alarm_after_its_grace(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    await world.clock.run(30 * 60 + 299)
    assert (await world.app(app_id))["overdue"] is False
    await world.clock.run(60)
    assert (await world.app(app_id))["overdue"] is True
