"""Status and health on a real Engine: they match the containers, with a reason."""

import re
import time
from contextlib import closing

import docker
from running_stack import IMAGE, SLEEPER, Stack

BASE = f"image: {IMAGE}\n    init: true\n    stop_grace_period: 0s"
PAIR = f"services:\n  web:\n    {BASE}\n    command: sleep 1000\n  db:\n    {BASE}\n    command: sleep 1000\n"


def container(stack: Stack, name: str) -> docker.APIClient:
    """Return a client of the Engine; the container has to be there."""
    client = docker.APIClient(base_url=stack.engine.host, version="auto")
    client.inspect_container(name)
    return client


def start(stack: Stack, name: str, compose: str) -> str:
    """Make and start an app."""
    app_id = stack.make_app(name, compose)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    return app_id


def test_killed_container_degrades_app_and_last_one_stops_it(stack: Stack) -> None:
    app_id = start(stack, "falls", PAIR)
    stack.wait_app(app_id, status="running", health="healthy")
    with closing(container(stack, "falls-db-1")) as client:
        client.kill("falls-db-1")
        stack.wait_app(app_id, status="running", health="degraded", lastError=None)
        client.kill("falls-web-1")
    app = stack.wait_app(app_id, status="stopped", health="unknown", stopAt=None, startedAt=None)
    assert app["lastError"] == "Db exited with code 137, web exited with code 137."
    (told,) = [entry for entry in stack.audit("STATUS_CHANGE") if entry["resourceId"] == app_id]
    assert told["details"] == "App falls is stopped: db exited with code 137, web exited with code 137."
    assert told["data"]["to"] == "stopped"
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.wait_app(app_id, status="running", health="healthy", lastError=None)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_app_with_manually_removed_containers_is_stopped(stack: Stack) -> None:
    app_id = start(stack, "removed", SLEEPER)
    stack.compose(stack.apps / "removed", "down")
    app = stack.wait_app(app_id, status="stopped")
    # Either its exit or its removal is seen first.
    assert re.fullmatch(r"Web exited with code \d+\.|Its containers were removed\.", app["lastError"])
    assert app["stopAt"] is None


def test_one_shot_exit_0_is_healthy_and_failure_is_degraded(stack: Stack) -> None:
    job = PAIR.replace("command: sleep 1000", "command: 'true'", 1)
    app_id = start(stack, "job", job)
    stack.wait_app(app_id, status="running", health="healthy")
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    app_id = start(stack, "broken-job", job.replace("'true'", "'false'"))
    stack.wait_app(app_id, status="running", health="degraded")
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_failing_health_check_makes_app_unhealthy(stack: Stack) -> None:
    check = """
    healthcheck: {test: ["CMD", "test", "-e", "/fine"], interval: 1s, timeout: 5s, retries: 1, start_period: 0s}
"""
    app_id = start(stack, "sick", f"services:\n  web:\n    {BASE}\n    command: sleep 1000{check}")
    stack.wait_app(app_id, status="running", health="unhealthy")
    with closing(container(stack, "sick-web-1")) as client:
        client.exec_start(client.exec_create("sick-web-1", ["touch", "/fine"])["Id"])
    stack.wait_app(app_id, status="running", health="healthy")
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_missing_replicas_degrade_app(stack: Stack) -> None:
    app_id = start(stack, "scaled", f"services:\n  web:\n    {BASE}\n    command: sleep 1000\n    scale: 3\n")
    stack.wait_app(app_id, status="running", health="healthy")
    with closing(container(stack, "scaled-web-2")) as client:
        client.remove_container("scaled-web-2", force=True)
    stack.wait_app(app_id, status="running", health="degraded")
    stack.compose(stack.apps / "scaled", "up", "-d")
    stack.wait_app(app_id, status="running", health="healthy")
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_restart_loop_stays_degraded(stack: Stack) -> None:
    loop = f"services:\n  web:\n    {BASE}\n    restart: always\n    command: sh -c 'sleep 0.5; exit 1'\n"
    app_id = start(stack, "loops", loop)
    stack.wait_app(app_id, status="running", health="degraded")
    until = time.monotonic() + 6
    seen = set()
    while time.monotonic() < until:
        app = stack.app(app_id)
        seen.add((app["status"], app["health"]))
        time.sleep(0.02)
    assert seen == {("running", "degraded")}, "it doesn't flap"
    (web,) = stack.api.get(f"/api/apps/{app_id}/services").expect(200)
    assert web["restarts"] >= 2
    changes = [entry for entry in stack.audit("STATUS_CHANGE") if entry["resourceId"] == app_id]
    assert changes == []
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(stack.apps / "loops") == []


def test_manually_started_project_is_adopted_with_real_start_time(stack: Stack) -> None:
    directory = stack.apps / "by-hand"
    directory.mkdir()
    (directory / "compose.yaml").write_text(PAIR)
    stack.compose(directory, "up", "-d")
    began = time.time()
    time.sleep(2)  # so that its start and its adoption differ
    path = f"/api/servers/{stack.server_id}/discover"
    (found,) = [each for each in stack.api.get(path).expect(200) if each["name"] == "by-hand"]
    assert found == {
        "name": "by-hand",
        "cdPath": str(directory),
        "status": "running",
        "services": ["db", "web"],
        "configFiles": [str(directory / "compose.yaml")],
        "environmentFile": None,
        "composeFiles": [],
    }
    app_id = stack.make_app("adopted", None, directory, autoStopTimeout=9)
    app = stack.wait_app(app_id, status="running", health="healthy")
    assert abs(app["startedAt"] / 1000 - began) < 1.5
    assert app["stopAt"] / 1000 > began + 9 * 60 + 1, "its time counts from now on"
    assert "by-hand" not in [each["name"] for each in stack.api.get(path).expect(200)]
    moved = stack.api.put(f"/api/apps/{app_id}", {"autoStopTimeout": 19}).expect(200)
    assert moved["stopAt"] - app["stopAt"] == (19 - app["autoStopTimeout"]) * 60_000
    assert (moved["autoStopTimeout"], moved["defaultTimeout"]) == (19, 19)
    rows = stack.api.get(f"/api/apps/{app_id}/services").expect(200)
    assert [(row["service"], row["state"]) for row in rows] == [("db", "running"), ("web", "running")]
    assert all(abs(row["since"] / 1000 - began) < 1.5 for row in rows)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(directory) == []


def test_manual_start_in_app_directory_gets_deadline(stack: Stack) -> None:
    app_id = stack.make_app("hand-started", SLEEPER, autoStopTimeout=3)
    stack.compose(stack.apps / "hand-started", "up", "-d")
    app = stack.wait_app(app_id, status="running")
    assert 0 <= app["stopAt"] - app["startedAt"] - 3 * 60_000 < 5_000
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_unreachable_host_keeps_app_status(stack: Stack) -> None:
    app_id = start(stack, "unasked", SLEEPER)
    before = stack.wait_app(app_id, status="running", health="healthy")
    stack.agent.terminate()
    stack.wait_server(status="offline")
    app = stack.app(app_id)
    assert (app["status"], app["health"], app["stopAt"]) == ("running", "unknown", before["stopAt"])
    assert app["observedAt"] is not None
    stack.api.get(f"/api/apps/{app_id}/services").expect(503)
    with closing(container(stack, "unasked-web-1")) as client:
        client.kill("unasked-web-1")
    stack.agent.start()
    stack.wait_app(app_id, status="stopped", lastError="Web exited with code 137.")
    stack.wait_online()
