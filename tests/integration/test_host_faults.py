"""Hosts that don't answer, and hosts with a full disk."""

import time

from full_disks import covered
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, Stack


def test_unreachable_agent_is_reported_immediately(stack: Stack) -> None:
    app_id = stack.make_app("unreachable", SLEEPER)
    stack.agent.kill()
    try:
        began = time.monotonic()
        refused = stack.api.post(f"/api/apps/{app_id}/start").expect(503)
        took = time.monotonic() - began
        assert refused["code"] == "host_unreachable"
        assert stack.agent.address in refused["error"]
        assert took < 10
        shown = stack.app(app_id)
        assert (shown["status"], shown["stopAt"], shown["operationId"]) == ("stopped", None, None)
        assert shown["lastError"] == refused["error"]
        server = stack.api.get(f"/api/servers/{stack.server_id}/status").expect(200)
        assert (server["status"], server["runningContainers"]) == ("offline", 0)
    finally:
        stack.agent.start()
    stack.wait_online()
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert stack.app(app_id)["lastError"] is None
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_full_journal_disk_is_reported(stack: Stack) -> None:
    app_id = stack.make_app("full", SLEEPER)
    running = stack.make_app("crammed", SLEEPER)
    stack.api.post(f"/api/apps/{running}/start").expect(200)
    with covered(stack.agent.folder / "data" / "operations"):
        refused = stack.api.post(f"/api/apps/{app_id}/start").expect(503)
        assert refused["code"] == "journal_full"
        assert "disk" in refused["error"]
        shown = stack.app(app_id)
        assert (shown["status"], shown["lastError"]) == ("stopped", refused["error"])
        assert stack.containers(stack.apps / "full") == []
        stopped = stack.api.post(f"/api/apps/{running}/stop").expect(200)
        assert "This stop runs without a journal." in stopped["output"]
        assert stack.containers(stack.apps / "crammed") == []
        path = f"/api/servers/{stack.server_id}"
        eventually(lambda: stack.api.get(path).json["statusDetail"], timeout=30, what="what is wrong with the host")
        server = stack.api.get(path).expect(200)
        assert server["status"] == "online"
        assert str(stack.agent.folder / "data" / "operations") in server["statusDetail"]
        assert server["keepsDeadlines"] is True
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_engine_outage_and_recovery_are_reported(stack: Stack) -> None:
    app_id = stack.make_app("no-engine", SLEEPER)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.engine.kill()
    try:
        stack.wait_server(status="offline")
        refused = stack.api.post(f"/api/apps/{app_id}/stop").expect(503)
        assert refused["code"] == "engine_unreachable"
        # Unknown doesn't mean stopped.
        shown = stack.app(app_id)
        assert (shown["status"], shown["health"]) == ("running", "unknown")
        assert shown["stopAt"] is not None
    finally:
        stack.engine.start()
    stack.wait_online()
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(stack.apps / "no-engine") == []
