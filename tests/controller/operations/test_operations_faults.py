"""Faults during an operation: unreachable hosts, cut connections, a controller crash. Never a false end."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from factories import LIMIT, PATH, World, add_operation
from fakes import EPOCH, FakeHost, Plan, Refusal, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.transport import EndKind, HostRefusedError, Order
from moorage_controller.store.tables.operations import Operation

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


async def test_unreachable_host_is_reported_immediately_and_nothing_is_sent(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.reachable = False
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(503, "host_unreachable")
    app = await world.app(app_id)
    assert (app["status"], app["lastError"], app["operationId"]) == ("stopped", body["error"], None)
    assert (await world.row(app_id)).run_id is None
    assert host.journal == {}
    assert (await world.operation(body["operationId"]))["state"] == "failed"
    host.reachable = True
    await world.clock.run(60)
    assert host.journal == {}, "what was told to have failed must not be sent later"
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)


async def test_server_without_agent_returns_advice(world: World) -> None:
    app_id = await world.new_app(await world.new_server())
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(503, "no_agent")
    assert (await world.app(app_id))["status"] == "stopped"


async def test_silent_host_times_out_within_seconds(world: World, host: FakeHost, app_id: str) -> None:
    host.silent = True
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await world.clock.run(4.9)
    assert not calling.done()
    await world.clock.run(0.2)
    (await calling).expect(503, "host_unreachable")
    assert host.journal == {}


async def test_stop_that_cannot_be_sent_keeps_run_and_deadline(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 60})).expect(200)
    host.reachable = False
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(503, "host_unreachable")
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"]) == ("running", NOW + 60 * MINUTE)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["start", "restart", "stop"])
async def test_contact_lost_during_start_is_retried_and_runs_once(
    world: World, host: FakeHost, app_id: str, when: str, verb: str
) -> None:
    host.lose_start = "before" if when == "before" else "after"
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/{verb}"))
    await settle()
    assert not calling.done()
    await world.clock.run(2)
    (await calling).expect(200)
    (run,) = host.journal.values()
    assert run.starts == 1
    assert run.attached == (1 if when == "after" else 0)


async def test_follow_resumes_by_offset_after_connection_cut(world: World, host: FakeHost, app_id: str) -> None:
    lines = b"".join(b"line %04d\n" % number for number in range(500))
    host.plans[OperationKind.UP] = Plan(0, lines)
    host.cut_after = 1234
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await settle()
    assert not calling.done()
    await world.clock.run(2)
    output = (await calling).expect(200)["output"]
    assert output.splitlines()[1:] == lines.decode().splitlines()
    assert host.follows == [0, 1234]


async def test_follow_resumes_after_long_outage_until_real_end(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    host.reachable = False
    await world.clock.run(60)
    operation = await world.operation(operation_id)
    assert operation["state"] == "running"
    assert operation["error"].startswith("Waiting for the host: ")
    assert (await world.app(app_id))["status"] == "starting"
    host.reachable = True
    await world.clock.run(20)
    operation = await world.operation(operation_id)
    assert (operation["state"], operation["error"]) == ("running", None)
    host.reachable = False
    host.let_go()
    await settle()
    host.reachable = True
    await world.clock.run(20)
    operation = await world.operation(operation_id)
    assert (operation["state"], operation["error"]) == ("succeeded", None)
    assert (await world.app(app_id))["status"] == "running"
    (run,) = host.journal.values()
    assert run.starts == 1


async def test_caller_wait_ends_at_limit_and_operation_continues(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    host.reachable = False
    await world.clock.run(LIMIT + 61)
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(504, "deadline_exceeded")
    assert body["operationId"] == operation_id
    assert (await world.operation(operation_id))["state"] == "running"


@pytest.mark.parametrize("verb", ["start", "stop"])
async def test_restarted_controller_resumes_operation(world: World, host: FakeHost, app_id: str, verb: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id, verb)
    await world.stop()
    assert [run.end for run in host.journal.values()] == [None]
    await world.start()
    assert (await world.operation(operation_id))["state"] == "running"
    host.let_go()
    await world.clock.run(2)
    assert (await world.operation(operation_id))["state"] == "succeeded"
    (run,) = host.journal.values()
    assert run.starts == 1


async def test_operation_ended_during_controller_downtime_is_recorded(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.hold()
    host.plans[OperationKind.UP] = Plan(1, b'{"error":true,"message":"port is taken"}\n', leaves=("db",))
    operation_id = await world.begin(app_id, "start", {"timeout": 5})
    await world.stop()
    host.let_go()
    await settle()
    world.clock.advance(60)
    await world.start()
    await settle()
    operation = await world.operation(operation_id)
    assert (operation["state"], operation["error"]) == ("failed", "port is taken")
    app = await world.app(app_id)
    assert (app["status"], app["health"], app["lastError"]) == ("running", "degraded", "port is taken")
    assert app["stopAt"] == NOW + 6 * MINUTE


async def died_before_sending(world: World, app_id: str, kind: OperationKind) -> Operation:
    """Leave the state of a controller that died between its commit and its first call to the host."""
    await world.stop()
    app = await world.row(app_id)
    database = world.database()
    deadline = world.clock.now() + timedelta(seconds=LIMIT)
    run = None if kind is OperationKind.DOWN else UUID(int=7)
    operation = await add_operation(
        database, app, kind=kind.value, deadline_at=deadline, run_id=run, run_timeout=5, created_at=world.clock.now()
    )
    await database.close()
    return operation


@pytest.mark.parametrize("kind", list(OperationKind))
async def test_unsent_operation_is_sent_within_its_limit(
    world: World, host: FakeHost, app_id: str, kind: OperationKind
) -> None:
    operation = await died_before_sending(world, app_id, kind)
    world.clock.advance(LIMIT - 1)
    await world.start()
    await settle()
    assert (await world.operation(str(operation.id)))["state"] == "succeeded"
    assert host.commands == [(kind, PATH)]


async def test_unsent_operation_past_limit_is_buried_and_fails(world: World, host: FakeHost, app_id: str) -> None:
    operation = await died_before_sending(world, app_id, OperationKind.UP)
    world.clock.advance(LIMIT + 1)
    await world.start()
    await world.clock.run(5)
    ended = await world.operation(str(operation.id))
    assert (ended["state"], "time limit" in ended["error"]) == ("failed", True)
    (run,) = host.journal.values()
    assert run.end is not None
    assert (run.end.kind, run.starts) == (EndKind.BURIED, 0)
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"]) == ("stopped", None)
    row = await world.row(app_id)
    assert row.run_id is None


async def test_unsent_stop_is_sent_at_any_age(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 600})).expect(200)
    operation = await died_before_sending(world, app_id, OperationKind.DOWN)
    world.clock.advance(2 * LIMIT)
    await world.start()
    await settle()
    assert (await world.operation(str(operation.id)))["state"] == "succeeded"
    assert (await world.app(app_id))["status"] == "stopped"
    assert host.app(PATH).containers == []


async def test_stale_observation_does_not_override_newer_state(world: World, host: FakeHost, app_id: str) -> None:
    stale = host.observation(PATH)
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    host.push(stale)
    await settle()
    assert (await world.app(app_id))["status"] == "running"
    stale = host.observation(PATH)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    host.push(stale)
    await settle()
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"]) == ("stopped", None)


async def test_observation_counter_restarts_after_host_reboot(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    host.boot_id, host._looked_at = "boot-2", 0
    host.set_running(PATH, [])
    await settle()
    assert (await world.app(app_id))["status"] == "stopped"


async def test_refusal_after_lost_start_is_not_treated_as_never_ran(world: World, host: FakeHost, app_id: str) -> None:
    """The start arrived, its reply didn't; asked again, the host can't even read its journal (a full disk)."""
    host.hold()
    host.lose_start = "after"
    operation_id = await world.begin(app_id, "start", {"timeout": 5})
    launch, refusals = host.launch, 0

    async def full(order: Order) -> None:
        nonlocal refusals
        refusals += 1
        if refusals > 2:
            await launch(order)
        raise HostRefusedError("journal_full", "The disk is full.")

    host.launch = full  # type: ignore[method-assign]  # a host whose disk fills up
    await world.clock.run(2)
    assert refusals > 0
    assert (await world.operation(operation_id))["state"] == "running", "a false end"
    host.let_go()
    await world.clock.run(60)
    assert (await world.operation(operation_id))["state"] == "succeeded"
    (run,) = host.journal.values()
    assert run.starts == 1


async def test_stop_unknown_to_host_is_sent_again(world: World, host: FakeHost, running_app_id: str) -> None:
    """It ran without a journal on a full disk, in an agent that was restarted meanwhile."""
    host.hold()
    operation_id = await world.begin(running_app_id, "stop")
    await settle()
    forgotten = host.journal.pop(UUID(operation_id))
    assert forgotten.task is not None
    forgotten.task.cancel()
    host.break_connections()
    host.let_go()
    await world.clock.run(60)
    assert (await world.operation(operation_id))["state"] == "succeeded"
    assert (await world.app(running_app_id))["status"] == "stopped"
    assert host.cancels == []


async def test_resent_operation_refused_by_host_fails_with_host_sentence(
    world: World, host: FakeHost, app_id: str
) -> None:
    operation = await died_before_sending(world, app_id, OperationKind.UP)
    host.refusal = Refusal("path_not_allowed", "This directory is outside of what the agent may touch.")
    await world.start()
    await world.clock.run(5)
    ended = await world.operation(str(operation.id))
    assert (ended["state"], ended["error"]) == ("failed", host.refusal.sentence)
    assert (await world.row(app_id)).run_id is None


async def test_observation_during_refused_start_is_applied(world: World, host: FakeHost, app_id: str) -> None:
    """A manual `docker compose up` meanwhile: reported once by the watch, and never again."""
    host.lose_start = "before"
    await world.begin(app_id)
    host.set_running(PATH, ["web"])
    host.refusal = Refusal("project_taken", "Another directory's containers run under that name.")
    await world.clock.run(5)
    app = await world.app(app_id)
    assert (app["status"], app["startedAt"] is not None) == ("running", True)
    assert app["stopAt"] is not None, "a running container without a deadline"


async def test_agent_fault_is_resolved_by_asking_again(world: World, host: FakeHost, app_id: str) -> None:
    launch = host.launch

    async def faulty(order: Order) -> None:
        await launch(order)
        raise HostRefusedError("agent_fault", "Something went wrong in the agent.")

    host.launch = faulty  # type: ignore[method-assign]  # an agent with a fault after the deed
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await world.clock.run(2)
    (await calling).expect(200)
    (run,) = host.journal.values()
    assert (run.starts, run.attached) == (1, 0)
