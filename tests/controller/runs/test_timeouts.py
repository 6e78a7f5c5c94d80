"""An app's timeout as dashboards read it: the run's own length while it runs, and a separate default."""

import pytest
from factories import World
from fakes import EPOCH, FakeHost, settle

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


async def shown(world: World, app_id: str) -> tuple[int, int, int | None]:
    """Return a dashboard's values: the timeout, the default, and the minutes from now to the end."""
    app = await world.app(app_id)
    return app["autoStopTimeout"], app["defaultTimeout"], app["stopAt"] and (app["stopAt"] - NOW) // MINUTE


async def put(world: World, app_id: str, **changes: int) -> None:
    (await world.user.put(f"/api/apps/{app_id}", changes)).expect(200)


async def test_timeout_of_running_app_spans_start_to_end(world: World, timed_app_id: str) -> None:
    assert await shown(world, timed_app_id) == (5, 5, None)
    (await world.user.post(f"/api/apps/{timed_app_id}/start", {"minutes": 240})).expect(200)
    assert await shown(world, timed_app_id) == (240, 5, 240)
    (await world.user.post(f"/api/apps/{timed_app_id}/extend", {"minutes": 30})).expect(200)
    assert await shown(world, timed_app_id) == (270, 5, 270)
    (await world.user.post(f"/api/apps/{timed_app_id}/stop")).expect(200)
    assert await shown(world, timed_app_id) == (5, 5, None)


async def test_timeout_of_discovered_run_counts_from_real_start(world: World, host: FakeHost) -> None:
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    app_id = await world.new_app(server["id"], cdPath="/srv/found", autoStopTimeout=9)
    await world.clock.run(90)
    host.set_running("/srv/found", ["web"])
    await settle()
    app = await world.app(app_id)
    assert app["startedAt"] + app["autoStopTimeout"] * MINUTE >= app["stopAt"]


async def test_timeout_that_repeats_the_shown_value_changes_nothing(world: World, timed_app_id: str) -> None:
    (await world.user.post(f"/api/apps/{timed_app_id}/start", {"minutes": 240})).expect(200)
    await put(world, timed_app_id, autoStopTimeout=240)
    assert await shown(world, timed_app_id) == (240, 5, 240)


async def test_timeout_change_moves_the_run_and_the_default(world: World, timed_app_id: str) -> None:
    (await world.user.post(f"/api/apps/{timed_app_id}/start", {"minutes": 240})).expect(200)
    (await world.user.post(f"/api/apps/{timed_app_id}/extend", {"minutes": 30})).expect(200)
    await put(world, timed_app_id, autoStopTimeout=90)
    assert await shown(world, timed_app_id) == (90, 90, 90)
    await put(world, timed_app_id, autoStopTimeout=100, defaultTimeout=7)
    assert await shown(world, timed_app_id) == (100, 7, 100)


@pytest.mark.parametrize(("minutes", "expected"), [(None, 90), (240, 240)])
async def test_default_timeout_change_moves_only_runs_using_it(
    world: World, timed_app_id: str, minutes: int | None, expected: int
) -> None:
    (await world.user.post(f"/api/apps/{timed_app_id}/start", {"minutes": minutes})).expect(200)
    await put(world, timed_app_id, defaultTimeout=90)
    assert await shown(world, timed_app_id) == (expected, 90, expected)


async def test_default_timeout_is_used_for_new_app(world: World, host: FakeHost) -> None:
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    app_id = await world.new_app(server["id"], defaultTimeout=17)
    assert await shown(world, app_id) == (17, 17, None)


async def test_timeout_change_that_ends_the_run_is_reported(world: World, running_app_id: str) -> None:
    await world.clock.run(120)
    await put(world, running_app_id, autoStopTimeout=1)
    await settle()
    (entry,) = [each for each in await world.audit("UPDATE") if each["resourceId"] == running_app_id]
    assert "is stopped now" in entry["details"]
    assert (await world.app(running_app_id))["status"] == "stopped"
