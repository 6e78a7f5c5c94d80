"""The queue: the limit of concurrent operations, and the timeouts for slow and silent ones."""

import asyncio
from uuid import UUID

import pytest
from factories import LIMIT, PATH, World
from fakes import FakeHost, Refusal, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.services.operations.queue import FifoLimiter
from moorage_controller.settings import Settings

SQLITE_ONLY = "Turns are taken in memory."


@pytest.fixture
async def host(world: World) -> FakeHost:
    """Return the one host, where nothing ends by itself."""
    found = (await world.new_host())[1]
    found.hold()
    return found


@pytest.fixture
async def app_ids(world: World, host: FakeHost) -> list[str]:
    """Return six apps on that host."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return [await world.new_app(server["id"], name=f"app {n}", cdPath=f"{PATH}{n}") for n in range(6)]


async def states(world: World) -> list[str]:
    """Return the states of all operations, the oldest first."""
    return [each["state"] for each in reversed((await world.admin.get("/api/operations")).expect(200))]


async def test_four_starts_run_per_host_and_others_are_queued(world: World, host: FakeHost, app_ids: list[str]) -> None:
    for app_id in app_ids:
        await world.begin(app_id)
    assert len(host.commands) == 4
    assert sorted(await states(world)) == ["queued"] * 2 + ["running"] * 4
    host.let_go_of(f"{PATH}1")
    await world.clock.run(1)
    assert host.commands[4:] == [(OperationKind.UP, f"{PATH}4")], "who came first is served first"
    host.let_go()
    await world.clock.run(5)
    assert await states(world) == ["succeeded"] * 6
    assert [path for _, path in host.commands] == [f"{PATH}{n}" for n in range(6)]


async def test_stop_does_not_wait_for_hung_starts(world: World, host: FakeHost, app_ids: list[str]) -> None:
    host.let_go_of(f"{PATH}5")
    await world.begin(app_ids[5])
    for app_id in app_ids[:5]:
        await world.begin(app_id)
    assert len(host.commands) == 1 + 4
    (await world.user.post(f"/api/apps/{app_ids[5]}/stop")).expect(200)


async def test_full_queue_of_one_host_does_not_delay_others(world: World, host: FakeHost, app_ids: list[str]) -> None:
    for app_id in app_ids:
        await world.begin(app_id)
    assert len(host.commands) == 4
    server_id, _ = await world.new_host("10.0.0.2:7443", name="other")
    (await world.user.post(f"/api/apps/{await world.new_app(server_id)}/start")).expect(200)


async def test_queued_operation_is_cancelled_without_host_or_freed_slot(
    world: World, host: FakeHost, app_ids: list[str]
) -> None:
    operations = [await world.begin(app_id) for app_id in app_ids]
    cancelled = (await world.user.post(f"/api/operations/{operations[4]}/cancel")).expect(200)
    assert cancelled["state"] == "cancelled"
    assert cancelled["error"] == "The operation was cancelled by operator before it began."
    app = await world.app(app_ids[4])
    assert (app["status"], app["operationId"], app["stopAt"]) == ("stopped", None, None)
    assert (host.cancels, len(host.commands)) == ([], 4)
    host.let_go()
    await world.clock.run(5)
    assert [path for _, path in host.commands] == [f"{PATH}{n}" for n in (0, 1, 2, 3, 5)]
    assert [e["data"] for e in await world.audit("CANCEL")] == [{"operationId": operations[4]}]


async def test_queue_survives_controller_restart(world: World, host: FakeHost, app_ids: list[str]) -> None:
    for app_id in app_ids:
        await world.begin(app_id)
    await world.restart()
    await settle()
    assert len(host.commands) == 4, "what is at work already counts"
    assert sorted(await states(world)) == ["queued"] * 2 + ["running"] * 4
    host.let_go()
    await world.clock.run(10)
    assert await states(world) == ["succeeded"] * 6
    assert len(host.commands) == 6


async def test_queue_time_does_not_count_towards_limit(world: World, host: FakeHost, app_ids: list[str]) -> None:
    operations = [await world.begin(app_id) for app_id in app_ids[:5]]
    await world.clock.run(LIMIT - 10)
    for n in range(4):
        host.let_go_of(f"{PATH}{n}")
    await world.clock.run(LIMIT - 10)
    assert (await world.operation(operations[4]))["state"] == "running"
    await world.clock.run(30)
    late = await world.operation(operations[4])
    assert (late["state"], late["error"]) == (
        "failed",
        "The operation took longer than its time limit and was stopped.",
    )


async def test_failed_start_releases_its_slot(world: World, host: FakeHost, app_ids: list[str]) -> None:
    host.refusal = Refusal("path_not_allowed", "This host's policy doesn't allow that.")
    for app_id in app_ids * 2:
        (await world.user.post(f"/api/apps/{app_id}/start")).expect(403, "path_not_allowed")
    host.refusal = None
    host.let_go()
    for app_id in app_ids:
        (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Return a controller's settings, with those of the test's marker `settings`."""
    marker = request.node.get_closest_marker("settings")
    return settings if marker is None else settings.model_copy(update=marker.kwargs)


@pytest.mark.settings(operation_no_progress_minutes=1, operation_limit_minutes=60)
async def test_silent_start_is_terminated_and_printing_one_is_not(
    world: World, host: FakeHost, app_ids: list[str]
) -> None:
    silent, talking = await world.begin(app_ids[0]), await world.begin(app_ids[1])
    for _ in range(5):
        await world.clock.run(50)
        host.say(f"{PATH}1", b"still pulling\n")
    ended = await world.operation(silent)
    assert ended["state"] == "failed"
    assert ended["error"] == "The operation made no progress for longer than its limit and was stopped."
    assert host.journal[UUID(silent)].signals == ["TERM"]
    assert (await world.operation(talking))["state"] == "running"
    host.let_go()
    await world.clock.run(5)
    assert (await world.operation(talking))["state"] == "succeeded"


@pytest.mark.settings(operation_no_progress_minutes=1, operation_limit_minutes=60)
async def test_host_outage_does_not_count_as_silence(world: World, host: FakeHost, app_ids: list[str]) -> None:
    operation_id = await world.begin(app_ids[0])
    await world.clock.run(30)
    host.reachable = False
    await world.clock.run(300)
    host.reachable = True
    await world.clock.run(40)
    assert (await world.operation(operation_id))["state"] == "running", "nobody could hear whether it said something"
    host.let_go()
    await world.clock.run(20)
    assert (await world.operation(operation_id))["state"] == "succeeded"


@pytest.mark.settings(operation_no_progress_minutes=1, operation_limit_minutes=60)
async def test_silent_stop_is_never_terminated(world: World, host: FakeHost, app_ids: list[str]) -> None:
    operation_id = await world.begin(app_ids[0], "stop")
    await world.clock.run(600)
    assert (await world.operation(operation_id))["state"] == "running"
    assert host.cancels == []


async def test_slot_of_waiter_cancelled_on_grant_goes_to_next_waiter() -> None:
    gate = FifoLimiter(1)
    entered: list[int] = []

    async def pass_through(n: int, leave: asyncio.Event) -> None:
        async with gate.slot(at_once=False):
            entered.append(n)
            await leave.wait()

    leave = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(pass_through(n, leave[n])) for n in range(4)]
    await settle()
    leave[0].set()
    # One loop iteration: the first task leaves; the second is granted the slot, but hasn't run yet.
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await settle()
    assert entered == [0, 3]
    leave[3].set()
    await settle()
    assert not gate.is_full
