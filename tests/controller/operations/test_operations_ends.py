"""Ends of an operation and their effect on the app: failed, refused, cancelled, timed out, lost."""

import asyncio

import pytest
from factories import LIMIT, PATH, World
from fakes import EPOCH, FakeHost, Plan, Refusal, settle
from moorage_common.docker.states import OperationKind

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000
ERROR = b'{"error":true,"message":"no such image: nothing:1"}\n'


async def test_compose_error_is_shown_until_next_success(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.UP] = Plan(1, b"Pulling\n" + ERROR)
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(502, "compose_failed")
    assert body["error"] == "no such image: nothing:1"
    assert body["output"].splitlines()[-2:] == ["Pulling", "no such image: nothing:1"]
    app = await world.app(app_id)
    assert (app["status"], app["lastError"], app["stopAt"]) == ("stopped", body["error"], None)
    operation = await world.operation(body["operationId"])
    assert (operation["state"], operation["exitCode"], operation["error"]) == ("failed", 1, body["error"])
    host.plans.clear()
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    assert (await world.app(app_id))["lastError"] is None


@pytest.mark.parametrize("engine", ["goes away", "stays"])
async def test_exit_143_is_attributed_to_engine_only_after_engine_outage(
    world: World, host: FakeHost, app_id: str, engine: str
) -> None:
    said = "dependency failed to start: container shop-db-1 exited (143)"
    host.plans[OperationKind.UP] = Plan(1, f'{{"error":true,"message":"{said}"}}\n'.encode())
    starting = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await world.clock.run(5)
    assert not starting.done()
    if engine == "goes away":
        host.engine_problem = "It doesn't answer."
    await world.clock.run(20)
    body = (await starting).expect(502, "compose_failed" if engine == "stays" else "engine_lost")
    assert said in body["error"]
    assert ("was restarted" in body["error"]) == (engine == "goes away")


async def test_failed_start_runs_no_down_and_leftovers_get_a_deadline(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.plans[OperationKind.UP] = Plan(1, ERROR, leaves=("db",))
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(502, "compose_failed")
    app = await world.app(app_id)
    assert (app["status"], app["health"], app["lastError"]) == ("running", "degraded", "no such image: nothing:1")
    assert (app["startedAt"], app["stopAt"]) == (NOW, NOW + 5 * MINUTE)
    assert [kind.value for kind, _ in host.commands] == ["up"]


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_failed_start_of_running_app_keeps_its_run(world: World, host: FakeHost, app_id: str, verb: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5})).expect(200)
    old = await world.row(app_id)
    host.plans[OperationKind.UP] = host.plans[OperationKind.RESTART] = Plan(1, ERROR, leaves=("web",))
    await world.clock.run(60)
    (await world.user.post(f"/api/apps/{app_id}/{verb}", {"timeout": 90})).expect(502, "compose_failed")
    new = await world.row(app_id)
    assert (new.status, new.run_id, new.stop_at, new.run_timeout) == ("running", old.run_id, old.stop_at, 5)


async def test_failure_without_output_is_reported_by_exit_code(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.DOWN] = Plan(14, leaves=("web",))
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    body = (await world.user.post(f"/api/apps/{app_id}/stop")).expect(502, "compose_failed")
    assert body["error"]
    app = await world.app(app_id)
    assert (app["status"], app["lastError"]) == ("running", body["error"])
    assert app["stopAt"] is not None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("path_not_allowed", 403),
        ("project_taken", 409),
        ("directory_busy", 409),
        ("project_busy", 409),
        ("journal_full", 503),
        ("deadlines_not_kept", 503),
        ("journal_unavailable", 503),
        ("engine_unreachable", 503),
        ("no_compose_file", 502),
    ],
)
async def test_host_refusal_is_passed_on_verbatim(
    world: World, host: FakeHost, app_id: str, code: str, status: int
) -> None:
    host.refusal = Refusal(code, "Because of this and that.")
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(status, code)
    assert body["error"] == "Because of this and that."
    app = await world.app(app_id)
    assert (app["status"], app["lastError"], app["stopAt"]) == ("stopped", "Because of this and that.", None)
    assert (await world.row(app_id)).run_id is None
    assert host.commands == []
    host.refusal = None
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)


async def test_lost_operation_has_unknown_end_and_running_app_gets_deadline(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5}))
    await settle()
    host.set_running(PATH, ["db"])
    host.lose_runs()
    body = (await calling).expect(502, "operation_lost")
    assert "not known" in body["error"]
    assert (await world.operation(body["operationId"]))["state"] == "interrupted"
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"]) == ("running", NOW + 5 * MINUTE)
    assert len(host.commands) == 1, "a lost run is never run again by itself"


async def test_cancelled_start_is_terminated_on_the_host(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await settle()
    operation_id = (await world.app(app_id))["operationId"]
    (await world.user.post(f"/api/operations/{operation_id}/cancel")).expect(200)
    body = (await calling).expect(409, "operation_cancelled")
    assert "operator" in body["error"]
    (run,) = host.journal.values()
    assert (run.signals, run.cancelled_by) == (["TERM"], "operator")
    assert (await world.operation(operation_id))["state"] == "cancelled"
    assert (await world.app(app_id))["status"] == "stopped"
    (entry,) = await world.audit("CANCEL")
    assert (entry["username"], entry["resourceId"], entry["data"]) == (
        "operator",
        app_id,
        {"operationId": operation_id},
    )
    (await world.user.post(f"/api/operations/{operation_id}/cancel")).expect(409, "operation_ended")


async def test_start_cancelled_before_arrival_never_runs(world: World, host: FakeHost, app_id: str) -> None:
    host.lose_start = "before"
    operation_id = await world.begin(app_id)
    (await world.user.post(f"/api/operations/{operation_id}/cancel")).expect(200)
    await world.clock.run(20)
    operation = await world.operation(operation_id)
    assert (operation["state"], "operator" in operation["error"]) == ("cancelled", True)
    assert host.commands == []
    assert (await world.row(app_id)).run_id is None


async def test_stop_cannot_be_cancelled(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id, "stop")
    (await world.user.post(f"/api/operations/{operation_id}/cancel")).expect(409, "not_cancellable")
    assert await world.audit("CANCEL") == []


async def test_cancel_that_cannot_be_sent_is_reported_and_changes_nothing(
    world: World, host: FakeHost, app_id: str
) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    host.reachable = False
    (await world.user.post(f"/api/operations/{operation_id}/cancel")).expect(503, "host_unreachable")
    assert (await world.operation(operation_id))["state"] == "running"
    assert await world.audit("CANCEL") == []


async def test_start_past_its_limit_is_terminated_on_host(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start"))
    await settle()
    await world.clock.run(LIMIT - 1)
    (run,) = host.journal.values()
    assert run.signals == []
    await world.clock.run(1)
    assert run.signals == ["TERM"]
    body = (await calling).expect(504, "deadline_exceeded")
    assert (await world.operation(body["operationId"]))["state"] == "failed"
    assert (await world.app(app_id))["status"] == "stopped"


async def test_time_limit_is_enforced_when_host_returns(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    host.reachable = False
    await world.clock.run(LIMIT + 60)
    assert (await world.operation(operation_id))["state"] == "running"
    host.reachable = True
    await world.clock.run(20)
    (run,) = host.journal.values()
    assert run.signals == ["TERM"]
    assert (await world.operation(operation_id))["state"] == "failed"


async def test_stop_is_never_terminated_by_limit(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id, "stop")
    await world.clock.run(2 * LIMIT)
    assert host.cancels == [], "it isn't even asked"
    assert (await world.operation(operation_id))["state"] == "running"
    host.let_go()
    await settle()
    assert (await world.operation(operation_id))["state"] == "succeeded"


async def test_unobserved_successful_start_counts_as_running(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    calling = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/start", {"timeout": 5}))
    await settle()
    host.engine_problem = "The Docker Engine doesn't answer."
    host.let_go()
    body = (await calling).expect(200)
    assert (body["status"], body["stopAt"]) == ("running", NOW + 5 * MINUTE)
    assert (await world.app(app_id))["health"] == "unknown"


async def test_long_output_keeps_only_its_end(world: World, host: FakeHost, app_id: str) -> None:
    lines = b"".join(b"line %06d\n" % number for number in range(20_000))
    host.plans[OperationKind.UP] = Plan(0, lines)
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    remark, *kept = body["output"].split("\n")
    assert remark == "[Earlier lines are left out.]"
    assert kept == [f"line {number:06d}" for number in range(20_000 - len(kept), 20_000)]
    assert 64 * 1024 - 2 * 12 <= 12 * len(kept) <= 64 * 1024


PANIC = b"panic: runtime error: index out of range [3]\n\ngoroutine 1 [running]:\nmain.main()\n\t/main.go:1 +0x1\n"


@pytest.mark.parametrize(("verb", "code"), [("start", 2), ("restart", 0), ("stop", 0)])
async def test_compose_crash_is_a_failure_with_any_exit_code(
    world: World, host: FakeHost, app_id: str, verb: str, code: int
) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    left = () if verb == "stop" else ("web",)
    host.plans = {kind: Plan(code, PANIC, left) for kind in OperationKind}
    body = (await world.user.post(f"/api/apps/{app_id}/{verb}")).expect(502, "compose_crashed")
    assert "crashed (panic: runtime error: index out of range [3])" in body["error"]
    assert "goroutine 1 [running]:" in body["output"]
    operation = await world.operation(body["operationId"])
    assert (operation["state"], operation["error"], operation["exitCode"]) == ("failed", body["error"], code)
    assert (await world.app(app_id))["status"] == ("stopped" if verb == "stop" else "running")


async def test_warnings_of_successful_operation_are_in_its_message(world: World, host: FakeHost, app_id: str) -> None:
    asked = b'Volume "a_b" exists but doesn\'t match configuration in compose file. Recreate (data will be lost)?'
    host.plans[OperationKind.UP] = Plan(0, asked + b'{"id":"Container web","status":"Done","text":"Running"}\n')
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    assert body["message"].startswith("Application started successfully. The change of the volume a_b was not applied")
    assert body["output"].split("\n")[-2:] == [asked.decode(), "Container web Running"]
    busy = b'{"id":"Network a_default","status":"Warning","text":"Still in use","details":"by stranger"}\n'
    host.plans[OperationKind.DOWN] = Plan(0, busy)
    body = (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    assert body["message"].startswith("Application stopped successfully. The network a_default was left, since")


async def test_binary_output_is_shown(world: World, host: FakeHost, app_id: str) -> None:
    host.plans[OperationKind.UP] = Plan(1, b"\xff\xfe \x1b[31mred\x1b[0m \x00 \xed\xa0\x80 end\n")
    body = (await world.user.post(f"/api/apps/{app_id}/start")).expect(502, "compose_failed")
    assert body["error"].endswith("end")
    assert "\x1b" not in body["output"]
    assert "\0" not in body["error"]
