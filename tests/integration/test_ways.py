"""Servers without an agent or with an unavailable one: the same operations by SSH, and nothing twice."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from running_stack import IMAGE, SLEEPER, SLOW, Stack
from transport_rigs import remove_ssh_apps

_ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with users who may use Docker."""
    assert sample_image
    with PrivateSshd(short_folder / "ways-ssh", engine, [LabUser("op"), LabUser("other")]) as running:
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture(scope="module")
def stack(engine: PrivateEngine, sshd: PrivateSshd, short_folder: Path) -> Iterator[Stack]:
    """Return a controller, and an agent whose host can be reached by SSH as well."""
    made = Stack(short_folder / "ways-stack", engine)
    try:
        made.start()
        made.api.put(f"/api/servers/{made.server_id}", ssh(sshd, "op")).expect(200)
        yield made
    finally:
        made.stop()


def ssh(sshd: PrivateSshd, user: str) -> dict[str, object]:
    return {"sshUser": user, "sshPort": sshd.port, "sshPrivateKey": sshd.key.read_text()}


def server(stack: Stack, server_id: str = "") -> Any:  # noqa: ANN401 - JSON
    return stack.api.get(f"/api/servers/{server_id or stack.server_id}").expect(200)


def wait_server(stack: Stack, server_id: str = "", **wanted: object) -> Any:  # noqa: ANN401 - JSON
    def right() -> Any:  # noqa: ANN401 - JSON
        shown = server(stack, server_id)
        assert {key: shown[key] for key in wanted} == wanted, shown["statusDetail"]
        return shown

    return eventually(right, timeout=60, what=f"the server {wanted}")


def test_server_without_agent_supports_all_operations(stack: Stack, sshd: PrivateSshd) -> None:
    body = {"name": "bare", "address": "127.0.0.1", **ssh(sshd, "op")}
    made = stack.api.post("/api/servers", body).expect(201)
    shown = wait_server(stack, made["id"], status="online", connection="ssh", statusDetail=None)
    assert shown["hostKeyFingerprint"].startswith("SHA256:")
    assert (shown["hasCredentials"], shown["agentVersion"]) == (True, None)
    assert stack.audit("HOST_KEY_ACCEPTED")[0]["details"].endswith("of bare was taken at first sight.")
    directory = sshd.apps / "bare"
    app_id = stack.make_app("bare", SLEEPER, directory, serverId=made["id"])
    started = stack.api.post(f"/api/apps/{app_id}/start", {"timeout": 5}).expect(200)
    assert (started["status"], started["stopAt"]) == ("running", started["startedAt"] + 5 * 60_000)
    assert "Started" in started["output"]
    assert stack.operation(started["operationId"])["transport"] == "ssh"
    assert stack.containers(directory, running=True) == ["web"]
    stack.wait_app(app_id, status="running", health="healthy")
    stack.compose(directory, "kill")
    stack.wait_app(app_id, status="stopped", timeout=5)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stopped = stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stopped["status"] == "stopped"
    assert stack.containers(directory) == []


def _bare(stack: Stack, sshd: PrivateSshd) -> str:
    """Return the id of the server without an agent."""
    found = [each["id"] for each in stack.api.get("/api/servers").expect(200) if each["name"] == "bare"]
    if not found:
        body = {"name": "bare", "address": "127.0.0.1", **ssh(sshd, "op")}
        found = [stack.api.post("/api/servers", body).expect(201)["id"]]
    wait_server(stack, found[0], status="online")
    return str(found[0])


@pytest.mark.parametrize("way", ["agent", "ssh"])
def test_warnings_of_start_and_stop_are_in_their_messages(
    stack: Stack, sshd: PrivateSshd, way: str, engine: PrivateEngine
) -> None:
    server_id, apps = (stack.server_id, stack.apps) if way == "agent" else (_bare(stack, sshd), sshd.apps)
    name = f"left-{way}"
    talks = '["sh", "-c", "trap \\"echo bye; exit\\" TERM; echo hello; while :; do sleep 0.1; done"]'
    service = f"{{image: '{IMAGE}', command: {talks}, volumes: ['data:/data']}}"
    volume = "{driver_opts: {type: tmpfs, device: tmpfs, o: size=1m}}"
    compose = f"services: {{web: {service}}}\nvolumes: {{data: {volume}}}\n"
    app_id = stack.make_app(name, compose, apps / name, serverId=server_id)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    (apps / name / "compose.yaml").write_text(compose.replace("size=1m", "size=2m"))
    started = stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert f"The change of the volume {name}_data was not applied" in started["message"]
    (asked,) = [line for line in started["output"].split("\n") if "Recreate" in line]
    assert asked.endswith("Recreate (data will be lost)?")
    assert "{" not in started["output"]
    with closing(engine.client()) as client:
        stranger = client.containers.create(
            IMAGE, ["sleep", "600"], init=True, name=f"stranger-{way}", network=f"{name}_default"
        )
        try:
            stranger.start()
            stopped = stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
        finally:
            stranger.remove(force=True)
    assert stopped["status"] == "stopped"
    remark, *lines = stack.api.get(f"/api/apps/{app_id}/logs").json.splitlines()
    assert remark.startswith("[The app is stopped.")
    assert lines == [f"{name}-web-1 | hello", f"{name}-web-1 | bye"]
    assert f"The network {name}_default was left, since it is used by stranger-{way}:" in stopped["message"]


def test_compose_crash_is_reported_as_failure(stack: Stack) -> None:
    app_id = stack.make_app("crashes", SLOW)
    operation = stack.api.post(f"/api/apps/{app_id}/start", headers={"Prefer": "respond-async"}).expect(202)["id"]
    out = stack.journal(operation) / "out"
    eventually(lambda: "Waiting" in out.read_text(), timeout=20, what="the start in full swing")
    (compose,) = [
        process
        for process in Path("/proc").glob("[0-9]*")
        if b"docker-compose\0" in _command(process) and _directory(process) == str(stack.apps / "crashes")
    ]
    os.kill(int(compose.name), signal.SIGABRT)
    ended = eventually(lambda: _ended(stack, operation), timeout=20, what="its end")
    assert ended["state"] == "failed"
    assert ended["error"].startswith("Compose itself crashed (SIGABRT: abort)")
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _directory(process: Path) -> str:
    try:
        return str((process / "cwd").readlink())
    except OSError:
        return ""


def _ended(stack: Stack, operation_id: str) -> Any:  # noqa: ANN401 - JSON
    shown = stack.operation(operation_id)
    return shown if shown["finishedAt"] else None


_STUBBORN = f"""\
{SLOW.replace("stop_grace_period: 0s", "stop_grace_period: 5s").replace("touch /ready", "true")}
  slow:
    image: {IMAGE}
    stop_grace_period: 4s
    command: sh -c "trap '' TERM; while :; do sleep 1; done"
"""
"""One of its containers exits immediately when its Engine stops; another one delays the Engine's exit."""


def _running(stack: Stack, place: Path, services: list[str]) -> None:
    def right() -> bool:
        assert stack.containers(place, running=True) == services
        return True

    eventually(right, timeout=40, what=f"{services} in {place}")


def test_engine_outage_during_start_is_reported(stack: Stack, sshd: PrivateSshd) -> None:
    body = {"name": "restarted", "address": "127.0.0.1", **ssh(sshd, "op")}
    bare = wait_server(stack, stack.api.post("/api/servers", body).expect(201)["id"], status="online")["id"]
    places = {"by-agent": (stack.server_id, stack.apps / "by-agent"), "by-ssh": (bare, sshd.apps / "by-ssh")}
    apps = [stack.make_app(name, _STUBBORN, place, serverId=server) for name, (server, place) in places.items()]
    started = [stack.api.post(f"/api/apps/{app_id}/start", headers=_ASYNC).expect(202)["id"] for app_id in apps]
    for _, place in places.values():
        _running(stack, place, ["db", "slow"])
    stack.engine.restart()
    for app_id, operation in zip(apps, started, strict=True):
        stack.wait_app(app_id, operationId=None)
        ended = stack.operation(operation)
        assert ended["state"] == "failed"
        assert "The Docker Engine on the host went away or was restarted" in ended["error"]
        assert "Compose said:" in ended["error"]
    for server in (stack.server_id, bare):
        wait_server(stack, server, status="online")
    for app_id in apps:
        stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_ssh_takes_over_start_of_killed_agent(stack: Stack) -> None:
    wait_server(stack, status="online", connection="agent")
    app_id = stack.make_app("taken-over", SLOW)
    operation = stack.api.post(f"/api/apps/{app_id}/start", headers=_ASYNC).expect(202)["id"]
    out = stack.journal(operation) / "out"
    eventually(lambda: "Waiting" in out.read_text(), timeout=20, what="the start in full swing")
    assert stack.operation(operation)["transport"] == "agent"
    stack.agent.kill()
    shown = wait_server(stack, status="online", connection="ssh")
    assert "can't be reached" in shown["statusDetail"]
    assert "by SSH" in shown["statusDetail"]
    stack.wait_app(app_id, status="running", operationId=None, timeout=180)  # disks that stall hold it up
    ended = stack.operation(operation)
    assert (ended["state"], ended["exitCode"], ended["transport"]) == ("succeeded", 0, "ssh")
    assert stack.containers(stack.apps / "taken-over", running=True) == ["db", "web"]
    assert out.read_text().count("Container taken-over-web-1 Started") <= 1, "it ran once"
    # New operations go over SSH into the agent's journal: the agent knows them after its return.
    stop = stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.operation(stop["operationId"])["transport"] == "ssh"
    assert (stack.journal(stop["operationId"]) / "exit").exists()
    stack.agent.start()
    wait_server(stack, status="online", connection="agent", statusDetail=None)
    assert stack.app(app_id)["status"] == "stopped"
    started = stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert stack.operation(started["operationId"])["transport"] == "agent"
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_ssh_user_without_journal_access_cannot_bypass_agent(stack: Stack, sshd: PrivateSshd) -> None:
    app_id = stack.make_app("not-around", SLEEPER)
    stack.agent.kill()
    operations = stack.agent.folder / "data" / "operations"
    operations.chmod(0o700)
    # An open connection would detect it by itself; a new login checks it.
    stack.api.put(f"/api/servers/{stack.server_id}", ssh(sshd, "other")).expect(200)
    try:
        sentence = "can't write in the journal of the host's agent"
        eventually(lambda: sentence in (server(stack)["statusDetail"] or ""), timeout=40, what="the reason")
        refused = stack.api.post(f"/api/apps/{app_id}/start")
        assert refused.status == 503, refused.json
        assert sentence in refused.json["detail"]
        assert stack.containers(stack.apps / "not-around") == []
    finally:
        stack.agent.start()
    wait_server(stack, status="online", connection="agent")
