"""Crashes of agent or controller during an operation: it continues, ends, and its output is complete."""

import threading
from collections.abc import Callable

import pytest
from moorage_lab.waiting import eventually
from running_stack import SLOW, Stack, progress

_WHOLE = {f"Container {{0}}-{service}-1 {step}" for service in ("db", "web") for step in ("Created", "Started")}


def _begin(stack: Stack, app_id: str) -> str:
    headers = {"Prefer": "respond-async"}
    reply = stack.api.post(f"/api/apps/{app_id}/start", headers=headers)
    operation: str = reply.expect(202)["id"]
    assert reply.headers["location"] == f"/api/operations/{operation}"
    out = stack.journal(operation) / "out"
    eventually(lambda: "Waiting" in out.read_text(), timeout=20, what="the start in full swing")
    return operation


def _kill_controller(stack: Stack) -> None:
    stack.controller.kill()
    stack.controller.start()


def _kill_agent(stack: Stack) -> None:
    stack.agent.kill()
    stack.agent.start()


def _kill_both(stack: Stack) -> None:
    stack.controller.kill()
    stack.agent.kill()
    stack.controller.start()
    stack.agent.start()


@pytest.mark.parametrize("crash", [_kill_controller, _kill_agent, _kill_both])
def test_start_survives_crash_in_progress(stack: Stack, crash: Callable[[Stack], None]) -> None:
    name = crash.__name__.strip("_").replace("_", "-")
    app_id = stack.make_app(name, SLOW, autoStopTimeout=9)
    operation_id = _begin(stack, app_id)
    crash(stack)
    assert stack.operation(operation_id)["state"] == "running"
    assert stack.app(app_id)["status"] == "starting"

    def ended() -> bool:
        return bool(stack.operation(operation_id)["finishedAt"])

    eventually(ended, timeout=60, what="the end of the start")
    operation = stack.operation(operation_id)
    assert (operation["state"], operation["exitCode"], operation["error"]) == ("succeeded", 0, None)
    shown = stack.app(app_id)
    assert (shown["status"], shown["operationId"]) == ("running", None)
    assert shown["stopAt"] == shown["startedAt"] + 9 * 60_000
    assert stack.containers(stack.apps / name, running=True) == ["db", "web"]
    stack.wait_online()
    # A second start changes nothing: everything was created once.
    again = stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert not any("Created" in line for line in progress(again["output"]))
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_caller_gets_complete_output_despite_agent_kill(stack: Stack) -> None:
    app_id = stack.make_app("whole", SLOW)
    replies: list[dict[str, object]] = []

    def call() -> None:
        replies.append(stack.api.post(f"/api/apps/{app_id}/start").expect(200))

    caller = threading.Thread(target=call)
    caller.start()
    operation_id = eventually(lambda: stack.app(app_id)["operationId"], what="an operation in flight")
    out = stack.journal(operation_id) / "out"
    eventually(lambda: "Waiting" in out.read_text(), timeout=20, what="the start in full swing")
    _kill_agent(stack)
    caller.join(60)
    assert not caller.is_alive()
    output = str(replies[0]["output"])
    assert {line.format("whole") for line in _WHOLE} <= progress(output)
    stack.wait_online()
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_start_is_cancelled_on_the_host(stack: Stack) -> None:
    app_id = stack.make_app("cancelled", SLOW)
    operation_id = _begin(stack, app_id)
    stack.api.post(f"/api/operations/{operation_id}/cancel").expect(200)
    shown = stack.wait_app(app_id, operationId=None, timeout=30)
    assert stack.operation(operation_id)["state"] == "cancelled"
    assert "cancelled by admin" in shown["lastError"]
    # The containers started by then run, and so have a deadline.
    assert shown["status"] == "running"
    assert shown["stopAt"] is not None
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(stack.apps / "cancelled") == []


def test_second_start_joins_and_stop_is_refused_meanwhile(stack: Stack) -> None:
    app_id = stack.make_app("joined", SLOW)
    operation_id = _begin(stack, app_id)
    stop = stack.api.post(f"/api/apps/{app_id}/stop").expect(409)
    assert stop["code"] == "operation_in_progress"
    second = stack.api.post(f"/api/apps/{app_id}/start", {"timeout": 3}).expect(200)
    assert second["operationId"] == operation_id
    assert second["stopAt"] == second["startedAt"] + 60 * 60_000
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_logged_out_token_stays_revoked_after_restart(stack: Stack) -> None:
    guest = stack.controller.admin()
    guest.get("/api/auth/verify").expect(200)
    guest.post("/api/auth/logout").expect(200)
    guest.get("/api/auth/verify").expect(401)
    stack.controller.restart()
    guest.get("/api/auth/verify").expect(401)
    stack.api.get("/api/auth/verify").expect(200)
    stack.wait_online()
