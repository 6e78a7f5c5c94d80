"""A server without an agent, through a real controller."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from moorage_lab.api import Api
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, SLOW
from transport_rigs import remove_ssh_apps, ssh_app


class SshStack:
    """A controller, and a host that it reaches by SSH alone."""

    def __init__(self, folder: Path, sshd: PrivateSshd) -> None:
        self.sshd = sshd
        self.controller = ControllerProcess(folder / "controller")
        self.controller.start()
        self.api: Api = self.controller.admin()
        self.server_id = ""
        self.project_id = str(self.api.post("/api/projects", {"name": "tests"}).expect(201)["id"])

    def add_server(self, **fields: object) -> str:
        """Register the host; returns the server's id."""
        body = {"name": "plain", "address": "127.0.0.1", "sshPort": self.sshd.port, "sshUser": "op"}
        body["sshPrivateKey"] = self.sshd.key.read_text()
        return str(self.api.post("/api/servers", body | fields).expect(201)["id"])

    def make_app(self, server_id: str, compose: str = SLEEPER) -> str:
        """Register an app on it; returns its id."""
        path = ssh_app(self.sshd, compose)
        body = {"name": Path(path).name, "projectId": self.project_id, "serverId": server_id, "cdPath": path}
        return str(self.api.post("/api/apps", body).expect(201)["id"])

    def wait(self, path: str, *, seconds: float = 30, **wanted: object) -> dict[str, Any]:
        """Wait until a resource's fields are as wanted."""

        def right() -> dict[str, Any]:
            shown: dict[str, Any] = self.api.get(path).expect(200)
            assert {key: shown[key] for key in wanted} == wanted, shown
            return shown

        return eventually(right, timeout=seconds, what=f"{wanted}")


@pytest.fixture
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path, tmp_path: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`."""
    assert sample_image
    with PrivateSshd(short_folder / tmp_path.name, engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture
def whole(sshd: PrivateSshd, tmp_path: Path) -> Iterator[SshStack]:
    """Return a running controller."""
    made = SshStack(tmp_path, sshd)
    yield made
    if made.controller.process.alive:
        made.controller.process.terminate()


def test_app_is_started_observed_and_stopped_without_agent(whole: SshStack, engine: PrivateEngine) -> None:
    server_id = whole.add_server()
    server = whole.wait(f"/api/servers/{server_id}", status="online")
    assert (server["connection"], server["hasCredentials"], server["agentVersion"]) == ("ssh", True, None)
    assert server["hostKeyFingerprint"].startswith("SHA256:")
    app_id = whole.make_app(server_id)
    started = whole.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert "Container" in started["output"]
    app = whole.wait(f"/api/apps/{app_id}", status="running", health="healthy")
    assert app["stopAt"] > time.time() * 1000
    operation = whole.api.get(f"/api/operations/{started['operationId']}").expect(200)
    assert (operation["state"], operation["transport"]) == ("succeeded", "ssh")
    client = docker.APIClient(base_url=engine.host, version="auto")
    for row in client.containers(filters={"label": f"com.docker.compose.project.working_dir={app['cdPath']}"}):
        client.kill(row["Id"])
    client.close()
    whole.wait(f"/api/apps/{app_id}", seconds=5, status="stopped")
    whole.api.post(f"/api/apps/{app_id}/start").expect(200)
    whole.api.post(f"/api/apps/{app_id}/stop").expect(200)
    whole.wait(f"/api/apps/{app_id}", status="stopped", stopAt=None)


def test_controller_killed_during_start_resumes_it(whole: SshStack) -> None:
    server_id = whole.add_server()
    whole.wait(f"/api/servers/{server_id}", status="online")
    app_id = whole.make_app(server_id, SLOW)
    reply = whole.api.post(f"/api/apps/{app_id}/start", headers={"Prefer": "respond-async"}).expect(202)
    whole.wait(f"/api/operations/{reply['id']}", state="running")
    journal = whole.sshd.home("op") / ".local/state/moorage/operations" / reply["id"]
    eventually((journal / "start").exists, what="the command on the host")
    whole.controller.process.kill()
    whole.controller.start()
    whole.api = whole.controller.admin()
    ended = whole.wait(f"/api/operations/{reply['id']}", state="succeeded", seconds=60)
    assert ended["exitCode"] == 0
    whole.wait(f"/api/apps/{app_id}", status="running")


def test_changed_host_key_turns_server_offline_until_accepted(whole: SshStack) -> None:
    server_id = whole.add_server()
    path = f"/api/servers/{server_id}"
    first = whole.wait(path, status="online")["hostKeyFingerprint"]
    whole.sshd.stop()
    whole.sshd.make_host_key()
    whole.sshd.start()

    def told() -> str:
        shown = whole.api.get(path).expect(200)
        assert shown["status"] == "offline"
        assert "SSH host key" in shown["statusDetail"], shown
        return str(shown["statusDetail"])

    sentence = eventually(told, timeout=40, what="the reason")
    assert whole.api.get(path).expect(200)["hostKeyFingerprint"] == first
    refused = whole.api.post(f"{path}/host-key", {"fingerprint": first}).expect(409)
    assert refused["code"] == "host_key_differs"
    whole.api.post(f"{path}/host-key", {"fingerprint": "MD5:aa"}).expect(422)
    shown = sentence.partition("now shows ")[2].partition(",")[0]
    assert whole.api.post(f"{path}/host-key", {"fingerprint": shown}).expect(200)["hostKeyFingerprint"] == shown
    whole.wait(path, status="online")
    logs = whole.api.get("/api/audit-logs?action=HOST_KEY_ACCEPTED").expect(200)["logs"]
    expected = [{"fingerprint": shown, "before": first}, {"fingerprint": first, "before": None}]
    assert [entry["data"] for entry in logs] == expected


def test_corrected_credentials_take_effect_immediately(whole: SshStack) -> None:
    server_id = whole.add_server(sshUser="nobody-here")
    path = f"/api/servers/{server_id}"

    def told() -> bool:
        return "doesn't let nobody-here in" in whole.api.get(path).expect(200)["statusDetail"]

    eventually(told, what="the reason")
    whole.api.put(path, {"sshUser": "op"}).expect(200)
    whole.wait(path, status="online", seconds=10)
