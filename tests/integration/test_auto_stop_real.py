"""Auto-stop on a real host; some tests shift the controller's clock, everything else is real."""

import asyncio
import json
import time
from typing import Any

import pytest
from controller_and_agent import Member
from full_disks import covered
from moorage_lab.waiting import eventually, eventually_async
from running_stack import DEAF, IMAGE, SLEEPER, Stack


async def test_app_is_stopped_at_its_deadline_and_not_before(member: Member) -> None:
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


async def test_full_disk_does_not_prevent_auto_stop(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("full", SLEEPER, 2)
        with covered(member.agent.folder / "data" / "operations"):
            member.clock.shift(120)
            await member.wait_for(f"/api/apps/{app_id}", status="stopped", lastError=None)
            assert await member.running("full") == []
            assert len(await member.auto_stops(app_id)) == 1


async def test_leftovers_of_failed_start_are_stopped(member: Member) -> None:
    broken = f"  broken: {{image: '{IMAGE}', command: /not/there, depends_on: [web]}}\n"
    async with member.controller():
        await member.join()
        app_id = await member.start_app("half", SLEEPER + broken, 1, status=502)
        assert await member.running("half")
        member.clock.shift(61)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("half") == []
        assert len(await member.auto_stops(app_id)) == 1


async def test_run_due_during_controller_downtime_is_stopped_at_startup(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("late", SLEEPER, 3)
    member.clock.shift(3600)
    assert await member.running("late")
    async with member.controller():
        await member.wait_for(f"/api/apps/{app_id}", status="stopped")
        assert await member.running("late") == []
        [entry] = await member.auto_stops(app_id)
        assert {**entry["data"], "secondsLate": 0} == {"reason": "timeout", "timeout": 3, "secondsLate": 0}
        assert entry["data"]["secondsLate"] > 3000


async def test_host_unavailable_at_deadline_is_stopped_on_return(member: Member) -> None:
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


async def test_stop_that_failed_in_engine_is_retried(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("stubborn", SLEEPER, 1)

        async def failed() -> bool:
            return bool(await member.call("GET", f"/api/operations?appId={app_id}&state=failed"))

        member.engine.hang()
        try:
            member.clock.shift(61)
            # A change triggers auto-stop immediately: 30 seconds later the host is known to be unusable, and skipped.
            await member.call("PUT", f"/api/apps/{app_id}", {"name": "stubborn"})
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


async def test_app_ignoring_sigterm_without_compose_file_is_stopped(member: Member) -> None:
    async with member.controller():
        await member.join()
        app_id = await member.start_app("deaf", DEAF, 1)
        (member.apps / "deaf" / "compose.yaml").unlink()
        member.clock.shift(61)
        await member.wait_for(f"/api/apps/{app_id}", status="stopped", overdue=False)
        assert await member.running("deaf") == []
        assert len(await member.auto_stops(app_id)) == 1


def auto_stops(stack: Stack, app_id: str) -> list[dict[str, Any]]:
    """Return the AUTO_STOP audit entries of an app."""
    return [entry for entry in stack.audit("AUTO_STOP") if entry["resourceId"] == app_id]


def wait_until(moment: int) -> None:
    """Wait until a time (epoch milliseconds)."""
    eventually(lambda: time.time() * 1000 >= moment, timeout=90, what="the moment")


def in_seconds(seconds: float) -> int:
    """Return a moment soon, as the API has it."""
    return round((time.time() + seconds) * 1000)


def test_controller_killed_at_deadline_stops_app_after_restart(stack: Stack) -> None:
    app_id = stack.make_app("killed-at", SLEEPER)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    moment = in_seconds(2)
    stack.api.post(f"/api/apps/{app_id}/extend", {"until": moment}).expect(200)
    wait_until(moment)
    stack.controller.kill()
    stack.controller.start()
    stack.wait_app(app_id, status="stopped", stopAt=None)
    assert stack.containers(stack.apps / "killed-at") == []
    (entry,) = auto_stops(stack, app_id)
    assert entry["data"]["reason"] == "timeout"


@pytest.mark.timeout(240)
def test_agent_stops_app_a_minute_late_without_controller(stack: Stack) -> None:
    """The agent, too, was killed over the deadline."""
    app_id = stack.make_app("gone", SLEEPER)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    moment = in_seconds(4)
    stack.api.post(f"/api/apps/{app_id}/extend", {"until": moment}).expect(200)
    file = stack.folder / "agent" / "data" / "deadlines.json"

    def known() -> bool:
        content = json.loads(file.read_text())
        return any(h["app_id"] == app_id and h["due"] - content["bootClock"] < 60 for h in content["held"])

    eventually(known, timeout=10, what="the new deadline on disk")
    stack.controller.kill()
    stack.agent.kill()
    wait_until(moment + 2_000)
    stack.agent.start()
    wait_until(moment + 58_000)
    assert stack.containers(stack.apps / "gone", running=True) == ["web"], "a controller has a minute"
    eventually(lambda: stack.containers(stack.apps / "gone") == [], timeout=30, what="stopped by its agent")
    assert time.time() - moment / 1000 < 75
    stack.controller.start()
    stack.wait_app(app_id, status="stopped", stopAt=None, overdue=False)
    (entry,) = auto_stops(stack, app_id)
    assert entry["data"]["by"] == "agent"
    (operation, *_) = stack.api.get(f"/api/operations?appId={app_id}").expect(200)
    assert (operation["kind"], operation["actor"], operation["state"]) == ("down", "agent", "succeeded")


def test_auto_stop_waits_for_engine_down_at_deadline(stack: Stack) -> None:
    app_id = stack.make_app("no-engine-then", SLEEPER.replace("init: true", "init: true, restart: always"))
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    moment = in_seconds(4)
    stack.api.post(f"/api/apps/{app_id}/extend", {"until": moment}).expect(200)
    stack.engine.kill()
    try:
        stack.wait_server(status="offline")
        wait_until(moment + 2_000)
        assert stack.app(app_id)["stopAt"] == moment
    finally:
        stack.engine.start()
    stack.wait_app(app_id, status="stopped", stopAt=None)
    assert stack.containers(stack.apps / "no-engine-then") == []
    assert len(auto_stops(stack, app_id)) == 1
