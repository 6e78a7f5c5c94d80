"""Repeated stops while a host is unavailable: one stop waits for the host, and no row is added."""

import asyncio
from typing import Any

from factories import World
from fakes import FakeHost


async def stop(world: World, app_id: str) -> Any:  # noqa: ANN401 - JSON
    await world.clock.run(1)
    asking = asyncio.create_task(world.user.post(f"/api/apps/{app_id}/stop"))
    await world.clock.run(3)
    return (await asking).expect(503, "host_unreachable")


async def stops(world: World, app_id: str) -> list[Any]:
    found = (await world.user.get(f"/api/operations?appId={app_id}")).expect(200)
    return [each for each in found if each["kind"] == "down"]


async def test_repeated_stop_waits_for_the_host_and_adds_no_rows(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.reachable = False
    await stop(world, app_id)
    waiting = {(await stop(world, app_id))["operationId"] for _ in range(20)}
    assert len(waiting) == 1
    assert len(await stops(world, app_id)) == 2
    assert len(await world.audit("STOP")) == 2

    host.reachable = True
    await world.clock.run(30)
    (operation_id,) = waiting
    assert (await world.operation(operation_id))["state"] == "succeeded"
    assert (await world.app(app_id))["status"] == "stopped"
    assert "asked for again 19 times" in (await world.audit("STOP"))[-1]["details"]


async def test_waiting_stop_continues_after_restart(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.reachable = False
    await stop(world, app_id)
    operation_id = (await stop(world, app_id))["operationId"]
    await world.restart()
    host.reachable = True
    await world.clock.run(30)
    assert (await world.operation(operation_id))["state"] == "succeeded"


async def test_forced_delete_of_app_reports_waiting_stop(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    host.reachable = False
    await stop(world, app_id)
    await stop(world, app_id)
    deleting = asyncio.create_task(world.admin.delete(f"/api/apps/{app_id}?force=true"))
    await world.clock.run(3)
    assert "waits for it" in (await deleting).expect(503, "host_unreachable")["error"]
