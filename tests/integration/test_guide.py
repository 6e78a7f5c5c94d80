"""docs/guide.md against the API: every dashboard call, called as documented.

`GUIDE` has the fields and types that the guide gives each reply. We may reply with more fields, never with fewer or
with others in their place.
"""

import base64
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from moorage_lab.api import Api
from running_stack import SLEEPER, Stack

Check = Callable[[object], bool]
Shape = Mapping[str, "Check | Shape"]


def text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def number(value: object) -> bool:
    return type(value) is int


def millis(value: object) -> bool:
    """Whether a value is current epoch milliseconds, not seconds or text."""
    return type(value) is int and 10**12 < value < 10**13


def identity(value: object) -> bool:
    with suppress(ValueError):
        return isinstance(value, str) and str(UUID(value)) == value
    return False


def true(value: object) -> bool:
    return value is True


def null(value: object) -> bool:
    return value is None


def word(*words: str) -> Check:
    return lambda value: value in words


USER: Shape = {"id": identity, "username": word("admin"), "role": word("admin")}
SERVER: Shape = {
    "id": identity,
    "name": text,
    "address": text,
    "sshUser": text,
    "sshPort": number,
    "status": word("online", "offline", "checking"),
    "runningAppsCount": number,
    "lastChecked": millis,
}
NEW_SERVER: Shape = {**SERVER, "lastChecked": lambda value: null(value) or millis(value)}
PROJECT: Shape = {"id": identity, "name": text, "description": text}
RUNNING: Shape = {
    "id": identity,
    "name": text,
    "projectId": identity,
    "serverId": identity,
    "cdPath": text,
    "appUrl": text,
    "autoStopTimeout": number,
    "status": word("running"),
    "startedAt": millis,
}
STOPPED: Shape = {**RUNNING, "status": word("stopped"), "startedAt": null}
DELETED: Shape = {"success": true}

GUIDE: Mapping[str, Shape] = {
    "POST /api/auth/login": {"user": USER, "token": text},
    "POST /api/auth/logout": {"success": true},
    "GET /api/auth/verify": {"user": USER},
    "GET /api/servers": SERVER,
    "POST /api/servers": NEW_SERVER,
    "PUT /api/servers/:id": NEW_SERVER,
    "DELETE /api/servers/:id": DELETED,
    "GET /api/servers/:id/status": {
        "status": word("online"),
        "runningContainers": number,
        "uptime": number,
        "lastChecked": millis,
    },
    "GET /api/projects": PROJECT,
    "POST /api/projects": PROJECT,
    "PUT /api/projects/:id": PROJECT,
    "DELETE /api/projects/:id": DELETED,
    "GET /api/apps": RUNNING,
    "POST /api/apps": STOPPED,
    "PUT /api/apps/:id": STOPPED,
    "DELETE /api/apps/:id": DELETED,
    "POST /api/apps/:id/start": {
        "success": true,
        "appId": identity,
        "status": word("running"),
        "startedAt": millis,
        "message": word("Application started successfully"),
    },
    "POST /api/apps/:id/stop": {
        "success": true,
        "appId": identity,
        "status": word("stopped"),
        "message": word("Application stopped successfully"),
    },
}
"""What a reply is, or each element of it where the guide shows a list."""
LISTS = {"GET /api/servers", "GET /api/projects", "GET /api/apps"}
CREDENTIALS = {"username": "admin", "password": "admin123"}
NEW = {"name": "Production Server 1", "address": "192.168.1.100", "sshUser": "root", "sshPort": 22}


class Caller:
    """Calls documented endpoints, and records the calls."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.called: set[str] = set()

    def call(self, endpoint: str, body: object = None, *, of: str = "") -> Any:  # noqa: ANN401 - JSON
        """Call an endpoint as the guide names it, with the id `of`; return the reply, which has the guide's shape."""
        method, path = endpoint.split(" ")
        reply = self.api.request(method, path.replace(":id", of), body)
        assert reply.headers["content-type"].startswith("application/json")
        told = reply.expect()
        self.called.add(endpoint)
        if endpoint in LISTS:
            assert isinstance(told, list)
            assert told, f"{endpoint} shows nothing"
            for element in told:
                assert misfits(element, GUIDE[endpoint]) == [], endpoint
        else:
            assert misfits(told, GUIDE[endpoint]) == [], endpoint
        return told


def misfits(told: object, shape: Shape, inside: str = "") -> list[str]:
    """Return the fields that are missing or differ from the guide's type, with their values."""
    if not isinstance(told, dict):
        return [f"{inside}: no object"]
    wrong = []
    for name, check in shape.items():
        place, value = f"{inside}{name}", told.get(name, Ellipsis)
        if isinstance(check, Mapping):
            wrong += misfits(value, check, f"{place}.")
        elif not check(value):
            wrong.append(f"{place}: {value!r}")
    return wrong


def test_every_documented_endpoint_replies_as_documented(stack: Stack) -> None:
    # The guide's own credentials, so that its first request can be sent letter for letter.
    change = {"currentPassword": stack.controller.admin_password, "newPassword": CREDENTIALS["password"]}
    stack.api.post("/api/auth/password", change).expect(200)
    caller = Caller(stack.controller.api())
    token = caller.call("POST /api/auth/login", CREDENTIALS)["token"]
    assert claims(token).keys() >= {"userId", "username", "role", "exp"}
    assert claims(token)["exp"] - claims(token)["iat"] == 24 * 3600
    caller.api = Api(stack.controller.url, token)
    caller.call("GET /api/auth/verify")
    check_servers(caller, stack)
    project = check_projects(caller)
    check_apps(caller, stack, project)
    assert caller.call("DELETE /api/projects/:id", of=project)["success"]
    caller.call("POST /api/auth/logout")
    assert caller.api.get("/api/auth/verify").status == 401
    assert caller.called == set(GUIDE)


def claims(token: str) -> dict[str, Any]:
    """Read a token's claims, without a check of its signature."""
    part = token.split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return read


def check_servers(caller: Caller, stack: Stack) -> None:
    made = caller.call("POST /api/servers", NEW)
    assert {name: made[name] for name in NEW} == NEW
    changed = caller.call("PUT /api/servers/:id", {**NEW, "name": "Renamed", "sshPort": 2222}, of=made["id"])
    assert (changed["id"], changed["name"], changed["sshPort"]) == (made["id"], "Renamed", 2222)
    caller.call("DELETE /api/servers/:id", of=made["id"])
    # The server with an agent, as created by following the guide.
    caller.call("PUT /api/servers/:id", {"sshUser": "root"}, of=stack.server_id)
    caller.call("GET /api/servers/:id/status", of=stack.server_id)
    assert [row["id"] for row in caller.call("GET /api/servers")] == [stack.server_id]


def check_projects(caller: Caller) -> str:
    project: str = caller.call("POST /api/projects", {"name": "QMS", "description": "Quality"})["id"]
    assert caller.call("PUT /api/projects/:id", {"name": "QMS 2"}, of=project)["name"] == "QMS 2"
    shown = caller.api.get("/api/projects").expect(200)
    for other in shown:
        if other["id"] != project:
            caller.call("DELETE /api/projects/:id", of=other["id"])
    assert [row["name"] for row in caller.call("GET /api/projects")] == ["QMS 2"]
    return project


def check_apps(caller: Caller, stack: Stack, project: str) -> None:
    directory = stack.apps / "qms-backend"
    directory.mkdir()
    (directory / "compose.yaml").write_text(SLEEPER)
    body = {
        "name": "QMS Backend",
        "projectId": project,
        "serverId": stack.server_id,
        "cdPath": str(directory),
        "appUrl": "http://192.168.1.100:8080",
        "autoStopTimeout": 60,
    }
    app = caller.call("POST /api/apps", body)
    assert {name: app[name] for name in body} == body
    assert caller.call("PUT /api/apps/:id", {**body, "autoStopTimeout": 30}, of=app["id"])["autoStopTimeout"] == 30
    started = caller.call("POST /api/apps/:id/start", {"timeout": 60}, of=app["id"])
    assert started["appId"] == app["id"]
    assert stack.containers(directory, running=True) == ["web"]
    shown = caller.call("GET /api/apps")
    assert [(row["id"], row["startedAt"]) for row in shown] == [(app["id"], started["startedAt"])]
    caller.call("POST /api/apps/:id/stop", of=app["id"])
    assert stack.containers(directory) == []
    caller.call("DELETE /api/apps/:id", of=app["id"])
