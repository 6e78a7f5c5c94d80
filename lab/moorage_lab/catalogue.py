"""The data of `make run` in the controller, made through the REST API: a server, a project, an app."""

import json
from pathlib import Path
from typing import Any

from moorage_lab.api import Api
from moorage_lab.programs.agent import AgentProcess

SERVER = "this machine"
PROJECT = "demo"
APP = "hello"
_TIMEOUT_MINUTES = 60


def ensure_server(api: Api) -> str:
    """Return the id of the server for this machine; create it if missing."""
    body = {"name": SERVER, "address": "127.0.0.1", "sshUser": "root", "sshPort": 22}
    return _ensure(api, "/api/servers", body)


def ensure_enrolled(api: Api, server_id: str, agent: AgentProcess) -> None:
    """Enrol the agent with a join token, unless it is enrolled for this same server and address."""
    record = agent.folder / "enrolled.json"
    wanted = {"serverId": server_id, "address": agent.address}
    if record.exists() and json.loads(record.read_text()) == wanted:
        return
    token = api.post(f"/api/servers/{server_id}/enrollment-token").expect()["token"]
    agent.enroll(api.url, token)
    record.write_text(json.dumps(wanted))


def server_is_online(api: Api, server_id: str) -> bool:
    """Return whether the controller is connected to the agent."""
    return bool(api.get(f"/api/servers/{server_id}").expect(200)["status"] == "online")


def find_app(api: Api) -> Any | None:  # noqa: ANN401  # the API's JSON
    """Return the sample app as the API shows it; None if missing."""
    return _find(api, "/api/apps", APP)


def ensure_app(api: Api, server_id: str, folder: Path, url: str) -> str:
    """Return the id of the sample app; create it, or update its page's address."""
    project_id = _ensure(api, "/api/projects", {"name": PROJECT})
    body = {
        "name": APP,
        "projectId": project_id,
        "serverId": server_id,
        "cdPath": str(folder),
        "appUrl": url,
        "autoStopTimeout": _TIMEOUT_MINUTES,
    }
    app_id = _ensure(api, "/api/apps", body)
    app = api.get(f"/api/apps/{app_id}").expect(200)
    moved = {key: body[key] for key in ("serverId", "cdPath", "appUrl") if app[key] != body[key]}
    if moved:
        api.put(f"/api/apps/{app_id}", moved).expect()
    return app_id


def _ensure(api: Api, path: str, body: dict[str, Any]) -> str:
    found = _find(api, path, body["name"])
    return str((found or api.post(path, body).expect())["id"])


def _find(api: Api, path: str, name: str) -> Any | None:  # noqa: ANN401  # the API's JSON
    return next((row for row in api.get(path).expect(200) if row["name"] == name), None)
