"""Auto-stop on a real host: the controller's clock is moved, everything else is as it is."""

import asyncio

from member import Member
from moorage_lab.waiting import eventually_async
from stack import IMAGE, SLEEPER


async def test_an_app_is_stopped_at_its_deadline_and_not_before(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("timed", SLEEPER, 2)
        member.clock.shift(110)
        await member.call("GET", "/readyz")
        assert (await member.call("GET", f"/api/apps/{app_id}"))["status"] == "running"
        assert await member.running("timed")

        member.clock.shift(10)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped", startedAt=None, stopAt=None)
        assert await member.running("timed") == []
        [entry] = await member.auto_stops(app_id)
        assert entry["data"] == {"reason": "timeout", "timeout": 2}
        assert entry["username"] == "auto-stop"
        assert entry["userId"] is None


async def test_a_failed_start_that_left_containers_is_stopped_too(member: Member) -> None:
    broken = f"  broken: {{image: '{IMAGE}', command: /not/there, depends_on: [web]}}\n"
    async with member.controller():
        await member.join()
        app_id = await member.start_app("half", SLEEPER + broken, 1, status=502)
        assert await member.running("half")
        member.clock.shift(61)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("half") == []
        assert len(await member.auto_stops(app_id)) == 1


async def test_what_became_due_while_the_controller_was_away_is_stopped_at_its_start(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("late", SLEEPER, 3)
    member.clock.shift(3600)
    assert await member.running("late")
    async with member.controller():
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("late") == []
        [entry] = await member.auto_stops(app_id)
        assert entry["data"] == {"reason": "timeout", "timeout": 3}


async def test_a_host_that_was_away_over_the_deadline_is_stopped_when_it_is_back(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("away", SLEEPER, 1)
        await asyncio.to_thread(member.agent.kill)
        await member.wait_for(f"/api/servers/{member.server_id}", status="offline")
        member.clock.shift(120)
        await member.wait_for(f"/api/apps/{app_id}", status="running", health="unknown", operationId=None)
        assert await member.running("away")
        await asyncio.to_thread(member.agent.start)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("away") == []
        assert len(await member.auto_stops(app_id)) == 1


async def test_a_stop_that_the_engine_could_not_do_is_tried_again(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("stubborn", SLEEPER, 1)

        async def failed() -> bool:
            return bool(await member.call("GET", f"/api/operations?appId={app_id}&state=failed"))

        member.engine.hang()
        try:
            member.clock.shift(61)
            await eventually_async(failed, timeout=60, what="a stop that failed")
            shown = await member.call("GET", f"/api/apps/{app_id}")
            assert shown["stopAt"] is not None
            assert "Docker Engine" in shown["lastError"]
        finally:
            member.engine.go_on()
        member.clock.shift(90)  # over the longest pause between two tries
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("stubborn") == []
        assert len(await member.auto_stops(app_id)) == 1
