"""Bodies of start, stop and extend: every name of a duration is accepted, and a stop can cancel a start."""

import asyncio

import pytest
from factories import World
from fakes import EPOCH, FakeHost, settle

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


@pytest.mark.parametrize("name", ["timeout", "timeout_minutes", "minutes"])
async def test_start_accepts_each_name_of_its_minutes(world: World, app_id: str, name: str) -> None:
    reply = (await world.user.post(f"/api/apps/{app_id}/start", {name: 5, "comment": "demo"})).expect(200)
    assert reply["stopAt"] == NOW + 5 * MINUTE


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("start", {"hours": 2}),
        ("start", {"durationSeconds": 300}),
        ("restart", {"stopAfter": 5}),
        ("start", {"until": NOW + MINUTE}),
        ("start", {"minutes": 5, "timeout": 6}),
        ("stop", {"minutes": 5}),
        ("extend", {"minutes": 5, "hours": 1}),
    ],
)
async def test_body_with_an_unknown_duration_is_refused(
    world: World, host: FakeHost, app_id: str, verb: str, body: dict[str, int]
) -> None:
    reply = await world.user.post(f"/api/apps/{app_id}/{verb}", body)
    assert "give" in reply.expect(422)["error"]
    assert not host.commands


async def test_conflict_names_the_operation_and_gives_advice(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    problem = (await world.user.post(f"/api/apps/{app_id}/stop")).expect(409, "operation_in_progress")
    assert problem["operationId"] == operation_id
    assert "cancelStart" in problem["error"]


async def test_stop_with_cancel_start_cancels_and_stops(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    operation_id = await world.begin(app_id)
    await settle()
    stopping = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/stop", {"cancelStart": True}))
    await settle()
    host.let_go()
    reply = (await stopping).expect(200)
    assert (reply["status"], reply["success"]) == ("stopped", True)
    assert (await world.operation(operation_id))["state"] == "cancelled"
    assert [len(await world.audit(action)) for action in ("CANCEL", "STOP")] == [1, 1]


async def test_stop_with_cancel_start_of_an_idle_app_stops(world: World, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/stop", {"cancelStart": True})).expect(200)


async def test_start_without_minutes_keeps_the_later_end_of_the_run(world: World, app_id: str) -> None:
    until = (await world.user.post(f"/api/apps/{app_id}/start", {"minutes": 240})).expect(200)["stopAt"]
    await world.clock.run(60)
    assert (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)["stopAt"] == until
    asked = (await world.user.post(f"/api/apps/{app_id}/start", {"minutes": 5})).expect(200)
    assert asked["stopAt"] == NOW + 6 * MINUTE
    default = (await world.app(app_id))["defaultTimeout"]
    anew = (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    assert anew["stopAt"] == NOW + MINUTE + default * MINUTE
