"""An app follows its current directory, by agent and by SSH."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, Stack
from transport_rigs import remove_ssh_apps


@dataclass(frozen=True)
class Place:
    """A server of a stack, and the folder of its apps."""

    stack: Stack
    server_id: str
    apps: Path

    def make_app(self, name: str, compose: str | None, directory: Path | None = None) -> str:
        """Write a compose file, none where it is None, and create the app; return its id."""
        return self.stack.make_app(name, compose, directory or self.apps / name, serverId=self.server_id)

    def start(self, app_id: str) -> None:
        """Start an app."""
        self.stack.api.post(f"/api/apps/{app_id}/start").expect(200)

    def stop(self, app_id: str) -> None:
        """Stop an app."""
        self.stack.api.post(f"/api/apps/{app_id}/stop").expect(200)

    def running(self, directory: Path) -> list[str]:
        """Return the services that run with a directory's label."""
        return self.stack.containers(directory, running=True)


@pytest.fixture(scope="module")
def places(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[dict[str, Place]]:
    """Return two servers of one controller, by the way to each."""
    assert sample_image
    stack = Stack(short_folder / "dirs-stack", engine)
    with PrivateSshd(short_folder / "dirs-ssh", engine, [LabUser("op")]) as sshd:
        try:
            stack.start()
            access = {"sshUser": "op", "sshPort": sshd.port, "sshPrivateKey": sshd.key.read_text()}
            bare = stack.api.post("/api/servers", {"name": "bare", "address": "127.0.0.1", **access}).expect(201)["id"]
            status = f"/api/servers/{bare}"
            eventually(lambda: stack.api.get(status).json["status"] == "online", timeout=60, what="the way by SSH")
            yield {"agent": Place(stack, stack.server_id, stack.apps), "ssh": Place(stack, bare, sshd.apps)}
        finally:
            stack.stop()
            remove_ssh_apps(sshd, engine)


@pytest.fixture(params=["agent", "ssh"])
def place(places: dict[str, Place], request: pytest.FixtureRequest) -> Place:
    """Return one of the servers."""
    return places[str(request.param)]


def test_moved_app_keeps_nothing_of_old_directory(place: Place) -> None:
    old, gone = place.apps / "moved-from", place.apps / "moved-to"
    moved = place.make_app("moved", SLEEPER, old)
    place.start(moved)
    place.stop(moved)
    place.stack.api.put(f"/api/apps/{moved}", {"cdPath": str(gone)}).expect(200)
    successor = place.make_app("successor", None, old)
    place.start(successor)
    place.stack.wait_app(successor, status="running", health="healthy")
    assert place.stack.app(moved)["status"] == "stopped"
    assert place.stack.api.get(f"/api/apps/{moved}/services").expect(200) == []
    place.stop(moved)
    assert place.running(old) == ["web"]
    assert place.stack.app(moved)["status"] == "stopped"
    place.stop(successor)


def test_app_started_with_other_files_gets_own_config_files(place: Place) -> None:
    directory = place.apps / "adopted"
    directory.mkdir()
    (directory / "prod.yaml").write_text(SLEEPER.replace("web:", "prod:"))
    (directory / "compose.yaml").write_text(SLEEPER)
    place.stack.compose(directory, "-f", "prod.yaml", "up", "-d")
    discover = f"/api/servers/{place.server_id}/discover"
    found = {each["cdPath"]: each for each in place.stack.api.get(discover).expect(200)}[str(directory)]
    assert found["configFiles"] == [str(directory / "prod.yaml")]
    assert (found["composeFiles"], found["environmentFile"]) == (["prod.yaml"], None)
    app_id = place.make_app("adopted", None)
    place.stack.wait_app(app_id, status="running")
    for verb in ("start", "restart"):
        refused = place.stack.api.post(f"/api/apps/{app_id}/{verb}").expect(409)
        assert refused["code"] == "other_files"
        assert str(directory / "prod.yaml") in refused["error"]
    assert place.running(directory) == ["prod"]
    place.stack.api.put(f"/api/apps/{app_id}", {"composeFiles": found["composeFiles"]}).expect(200)
    place.stack.api.post(f"/api/apps/{app_id}/restart").expect(200)
    place.stack.wait_app(app_id, status="running", health="healthy", composeFiles=["prod.yaml"])
    assert place.running(directory) == ["prod"]
    place.stop(app_id)
    assert place.running(directory) == []
    # Without own files, Compose searches for its defaults again.
    place.stack.api.put(f"/api/apps/{app_id}", {"composeFiles": []}).expect(200)
    place.start(app_id)
    assert place.running(directory) == ["web"]
    place.stop(app_id)


def test_directory_renamed_while_app_runs_is_handled(place: Place) -> None:
    old, new = place.apps / "before-rename", place.apps / "after-rename"
    app_id = place.make_app("renamed", SLEEPER, old)
    path, moved = f"/api/apps/{app_id}", {"cdPath": str(new)}
    place.start(app_id)
    assert place.stack.api.put(path, moved).expect(409)["code"] == "app_running"
    old.rename(new)
    gone = f"{old} is gone from the host"
    eventually(lambda: gone in (place.stack.app(app_id)["healthDetail"] or ""), timeout=40, what="the reason")
    place.stack.api.put(path, moved).expect(200)
    place.stack.wait_app(app_id, status="running", health="healthy", healthDetail=None)
    assert [each["state"] for each in place.stack.api.get(f"{path}/services").expect(200)] == ["running"]
    assert place.stack.api.post(f"{path}/restart").expect(409)["code"] == "other_files"
    place.stop(app_id)
    assert place.running(old) == []
    place.start(app_id)
    assert place.running(new) == ["web"]
    place.stop(app_id)


def test_symlink_to_directory_of_other_app_is_detected(place: Place) -> None:
    real, link = place.apps / "shared-place", place.apps / "shared-link"
    place.make_app("first", SLEEPER, real)
    link.symlink_to(real)
    stack = place.stack
    body = {"name": "second", "projectId": stack.project_id, "serverId": place.server_id, "cdPath": str(link)}
    refused = stack.api.post("/api/apps", body).expect(409)
    assert (refused["code"], "first" in refused["error"]) == ("directory_taken", True)
