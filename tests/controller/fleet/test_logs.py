"""The controller's log: documented events, with the ids to correlate them, and without secrets."""

import io
import json
from typing import Any

from factories import JWT_SECRET, PASSWORD, World
from fakes import FakeHost, Plan, settle
from moorage_common.docker.states import OperationKind

SQLITE_ONLY = "What is logged hangs on no database."


def told(logs: io.StringIO, event: str) -> list[Any]:
    """Return the lines of an event."""
    found = [json.loads(line) for line in logs.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


async def test_start_is_traceable_by_its_request_id(
    logs: io.StringIO, world: World, host: FakeHost, timed_app_id: str
) -> None:
    host.plans[OperationKind.UP] = Plan(output=b"Container web Started\n")
    reply = await world.user.post(f"/api/apps/{timed_app_id}/start", X_Request_Id="ticket-42")
    operation_id = reply.expect(200)["operationId"]
    for event in ("request", "audit", "operation_output", "operation_ended"):
        (line,) = [each for each in told(logs, event) if each.get("request_id") == "ticket-42"]
        if event.startswith("operation"):
            assert line["operation_id"] == operation_id
    (asked,) = [each for each in told(logs, "request") if each["request_id"] == "ticket-42"]
    assert (asked["method"], asked["status"], asked["address"]) == ("POST", 200, "127.0.0.1")
    assert asked["milliseconds"] >= 0
    (entry,) = [each for each in told(logs, "audit") if each["action"] == "START"]
    assert (entry["username"], entry["resource_id"]) == ("operator", timed_app_id)
    (output,) = told(logs, "operation_output")
    assert output["end"] == reply.json["output"]


async def test_logins_are_logged_without_passwords_and_tokens(logs: io.StringIO, world: World) -> None:
    reply = await world.nobody.post("/api/auth/login", {"username": "admin", "password": PASSWORD})
    token = reply.expect(200)["token"]
    (await world.nobody.post("/api/auth/login", {"username": "admin", "password": "not-it-at-all"})).expect(401)
    await world.nobody.get(f"/api/apps?token={token}")
    actions = [line["action"] for line in told(logs, "audit")][-2:]
    assert actions == ["LOGIN", "LOGIN_FAILED"]
    for secret in (PASSWORD, "not-it-at-all", token, JWT_SECRET):
        assert secret not in logs.getvalue()


async def test_rolled_back_change_is_not_logged(logs: io.StringIO, world: World) -> None:
    (await world.admin.post("/api/users", {"username": "operator", "password": PASSWORD})).expect(409)
    assert {line["action"] for line in told(logs, "audit")} == {"LOGIN"}


async def test_server_and_app_changes_are_logged(
    logs: io.StringIO, world: World, host: FakeHost, running_app_id: str
) -> None:
    host.set_running("/srv/apps/shop", [])
    await settle()
    changes = [line for line in told(logs, "audit") if line["action"] == "STATUS_CHANGE"]
    assert changes[-1]["resource_id"] == running_app_id
    host.reachable = False
    await world.clock.run(120)
    assert [line["status"] for line in told(logs, "server_status_changed")][-1] == "offline"
