"""Health of an app and its reason: the same by agent and by SSH, on a real Engine."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from moorage_lab.hosts.network import free_port
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from running_stack import IMAGE, Stack
from transport_rigs import remove_ssh_apps

SERVICE = f"image: '{IMAGE}', stop_grace_period: 0s"
SLEEPER = f"{{{SERVICE}, init: true, command: sleep 1000}}"
ENDS_WELL = f"""{{{SERVICE}, restart: unless-stopped, command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}}"""


@dataclass
class Place:
    """A server, and the directory on it in which apps lie. Both are of one Engine: projects bear the way's name."""

    way: str
    stack: Stack
    server_id: str
    apps: Path

    def app(self, name: str, **services: str) -> str:
        """Make an app; return its id."""
        name = f"{name}-{self.way}"
        return self.stack.make_app(name, compose(**services), self.apps / name, serverId=self.server_id)

    def write(self, name: str, **services: str) -> None:
        """Rewrite an app's compose file."""
        (self.apps / f"{name}-{self.way}" / "compose.yaml").write_text(compose(**services))

    def post(self, app_id: str, verb: str, status: int = 200) -> Any:  # noqa: ANN401 - JSON
        """Start, stop or restart an app."""
        return self.stack.api.post(f"/api/apps/{app_id}/{verb}").expect(status)

    def services(self, app_id: str) -> dict[str, Any]:
        """Return the containers of an app as the API shows them, by service."""
        return {each["service"]: each for each in self.stack.api.get(f"/api/apps/{app_id}/services").expect(200)}


def compose(**services: str) -> str:
    """Return a compose file."""
    return "services:\n" + "".join(f"  {name}: {about}\n" for name, about in services.items())


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with a user who may use Docker."""
    assert sample_image
    with PrivateSshd(short_folder / "health", engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture(scope="module")
def places(engine: PrivateEngine, sshd: PrivateSshd, short_folder: Path) -> Iterator[dict[str, Place]]:
    """Return a server with an agent, and one without."""
    stack = Stack(short_folder / "health-stack", engine)
    try:
        stack.start()
        body = {"name": "bare", "address": "127.0.0.1", "sshUser": "op", "sshPort": sshd.port}
        bare = stack.api.post("/api/servers", {**body, "sshPrivateKey": sshd.key.read_text()}).expect(201)["id"]
        yield {"agent": Place("agent", stack, stack.server_id, stack.apps), "ssh": Place("ssh", stack, bare, sshd.apps)}
    finally:
        stack.stop()


@pytest.fixture(params=["agent", "ssh"])
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    """Return each server in turn."""
    return places[request.param]


@pytest.fixture
def client(engine: PrivateEngine) -> Iterator[docker.APIClient]:
    """Return a client of the Engine."""
    with closing(docker.APIClient(base_url=engine.host, version="auto")) as made:
        yield made


def test_manually_paused_or_stopped_service_is_named_until_start(place: Place, client: docker.APIClient) -> None:
    app_id = place.app("held", web=SLEEPER, db=ENDS_WELL)
    place.post(app_id, "start")
    place.stack.wait_app(app_id, health="healthy", healthDetail=None)
    client.pause(f"held-{place.way}-web-1")
    place.stack.wait_app(app_id, status="running", health="degraded", healthDetail="web is paused")
    assert place.services(app_id)["web"]["state"] == "paused"
    client.stop(f"held-{place.way}-db-1", timeout=5)

    def both_named() -> str:
        detail: str = place.stack.app(app_id)["healthDetail"]
        stopped = r"db exited with code 0 at \d{4}-\d\d-\d\d \d\d:\d\d UTC, and its restart policy is unless-stopped"
        assert re.fullmatch(rf"{stopped}; web is paused", detail), detail
        return detail

    eventually(both_named, timeout=20, what="both reasons")
    place.post(app_id, "start")
    place.stack.wait_app(app_id, status="running", health="healthy", healthDetail=None)
    client.pause(f"held-{place.way}-web-1")
    place.stack.wait_app(app_id, health="degraded")
    place.post(app_id, "restart")
    place.stack.wait_app(app_id, status="running", health="healthy", healthDetail=None)
    place.post(app_id, "stop")


def test_start_that_leaves_nothing_running_reports_result(place: Place) -> None:
    job = f"{{{SERVICE}, command: 'true'}}"
    app_id = place.app("comes-to", job=job, other=job)
    started = place.post(app_id, "start")
    assert (started["status"], started["stopAt"]) == ("stopped", None)
    assert "completed" in started["message"]
    app = place.stack.app(app_id)
    assert (app["lastResult"], app["lastError"], app["health"], app["healthDetail"]) == (
        "completed",
        None,
        "unknown",
        None,
    )
    fails = f"""{{{SERVICE}, command: [sh, -c, "echo first >&2; echo no such file >&2; exit 3"]}}"""
    place.write("comes-to", job=job, other=fails)
    failed = place.post(app_id, "start", 502)
    assert failed["code"] == "exited_early"
    assert failed["error"].startswith("other exited with code 3 right after the start, and nothing is running.")
    assert failed["error"].endswith("-other-1 ends: first | no such file")
    app = place.stack.app(app_id)
    assert (app["status"], app["lastResult"], app["lastError"]) == ("stopped", None, failed["error"])
    place.post(app_id, "stop")
    for services in ({"web": f"{{{SERVICE}, scale: 0}}"}, {"web": f"{{{SERVICE}, profiles: [debug]}}"}):
        place.write("comes-to", **services)
        started = place.post(app_id, "start")
        assert (started["status"], started["message"][:19]) == ("stopped", "Nothing was started")
        app = place.stack.app(app_id)
        assert (app["lastResult"], app["lastError"]) == ("nothing_started", None)


def test_service_removed_from_file_is_orphan_until_restart(place: Place) -> None:
    port = free_port()
    publishes = SLEEPER.replace("init:", f"ports: ['127.0.0.1:{port}:80'], init:")
    app_id = place.app("renamed", web=publishes, db=SLEEPER)
    place.post(app_id, "start")
    place.stack.wait_app(app_id, health="healthy")
    place.write("renamed", site=publishes, db=SLEEPER)
    failed = place.post(app_id, "start", 502)
    assert failed["code"] == "port_taken"
    assert failed["error"] == (
        f"Port {port} is taken by the container renamed-{place.way}-web-1 of this app, whose service is no more in its "
        "files: restart the app, which removes it, or publish another port in the compose file."
    )
    assert {name: c["orphan"] for name, c in place.services(app_id).items()} == {
        "db": False,
        "site": False,
        "web": True,
    }
    place.post(app_id, "restart")
    assert {name: c["orphan"] for name, c in place.services(app_id).items()} == {"db": False, "site": False}
    place.stack.wait_app(app_id, health="healthy", healthDetail=None)
    place.write("renamed", site=publishes)
    place.stack.wait_app(app_id, health="healthy")

    other = place.app("neighbour", web=publishes)
    failed = place.post(other, "start", 502)
    assert failed["error"] == (
        f"Port {port} is taken by the container renamed-{place.way}-site-1 of the app renamed-{place.way}: stop that "
        "app, or publish another port in the compose file."
    )
    place.post(app_id, "stop")
    with closing(socket.create_server(("127.0.0.1", port))):
        failed = place.post(other, "start", 502)
    assert failed["error"].startswith(f"Port {port} is taken by a process outside Docker: ")
    place.post(other, "stop")


def test_dead_orphan_does_not_degrade_app_and_profile_is_no_orphan(
    places: dict[str, Place], client: docker.APIClient
) -> None:
    place = places["agent"]
    debug = SLEEPER.replace("init:", "profiles: [debug], init:")
    app_id = place.app("orphaned", web=SLEEPER, db=SLEEPER, tool=debug)
    place.stack.compose(place.apps / f"orphaned-{place.way}", "--profile", "debug", "up", "-d")
    place.stack.wait_app(app_id, status="running", health="healthy")
    place.write("orphaned", web=SLEEPER, tool=debug)
    client.kill(f"orphaned-{place.way}-db-1")

    def seen() -> bool:
        services = place.services(app_id)
        assert {name: c["orphan"] for name, c in services.items()} == {"web": False, "db": True, "tool": False}
        assert services["db"]["exitCode"] == 137
        return True

    eventually(seen, timeout=20, what="the dead orphan")
    place.stack.wait_app(app_id, status="running", health="healthy", healthDetail=None)
    client.kill(f"orphaned-{place.way}-tool-1")
    app = place.stack.wait_app(app_id, status="running", health="degraded")
    assert app["healthDetail"].startswith("tool exited with code 137 at ")
    place.post(app_id, "stop")


def test_provider_service_is_healthy_without_container(
    places: dict[str, Place],
) -> None:
    place = places["agent"]
    policy = place.stack.agent.folder / "data" / "policy.toml"
    policy.write_text(policy.read_text() + 'allow_providers = ["./provides"]\n')
    app_id = place.app("provided", db="{provider: {type: ./provides}}", web=SLEEPER)
    program = place.apps / "provided-agent" / "provides"
    program.write_text("""#!/bin/sh\necho '{"type": "setenv", "message": "URL=db.example"}'\n""")
    program.chmod(0o755)
    place.post(app_id, "start")
    place.stack.wait_app(app_id, status="running", health="healthy", healthDetail=None)
    assert place.services(app_id).keys() == {"web"}
    place.post(app_id, "stop")
    assert place.stack.app(app_id)["status"] == "stopped"
