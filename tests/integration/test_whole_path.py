"""REST -> controller -> gRPC with mutual TLS -> agent -> Compose -> Engine, and back."""

import json
import time

import docker
from running_stack import IMAGE, SLEEPER, Stack


def test_app_is_started_shown_and_stopped(stack: Stack) -> None:
    app_id = stack.make_app("plain", SLEEPER, appUrl="http://127.0.0.1:8080", autoStopTimeout=30)
    before = int(time.time() * 1000)
    asked = {"X-Request-Id": "ticket-42"}
    started = stack.api.post(f"/api/apps/{app_id}/start", {"timeout": 45}, headers=asked).expect(200)
    after = int(time.time() * 1000)

    assert started["success"] is True
    assert started["appId"] == app_id
    assert started["status"] == "running"
    assert started["message"] == "Application started successfully"
    assert before <= started["startedAt"] <= after
    assert started["stopAt"] == started["timer_ends_at"] == started["startedAt"] + 45 * 60_000
    assert started["app_url"] == "http://127.0.0.1:8080"
    assert "Container plain-web-1 Started" in started["output"].splitlines()
    assert stack.containers(stack.apps / "plain", running=True) == ["web"]

    shown = stack.app(app_id)
    assert shown["status"] == "running"
    assert shown["startedAt"] == started["startedAt"]
    assert (shown["autoStopTimeout"], shown["defaultTimeout"]) == (45, 30)
    assert shown["operationId"] is None
    assert shown["health"] == "healthy"
    server = stack.api.get(f"/api/servers/{stack.server_id}").expect(200)
    assert server["runningAppsCount"] == 1
    assert server["connection"] == "agent"
    operation = stack.operation(started["operationId"])
    assert (operation["kind"], operation["state"], operation["actor"]) == ("up", "succeeded", "admin")
    assert (operation["transport"], operation["exitCode"]) == ("agent", 0)

    # One id leads from the request through both logs to the host's journal.
    journal = stack.folder / "agent" / "data" / "operations" / started["operationId"] / "spec"
    assert json.loads(journal.read_text())["request_id"] == "ticket-42"
    for process in (stack.controller.process, stack.agent.process):
        told = [json.loads(line) for line in process.log.read_text().splitlines() if '"ticket-42"' in line]
        assert started["operationId"] in {line.get("operation_id") for line in told}, process

    stopped = stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stopped["success"] is True
    assert stopped["status"] == "stopped"
    assert stopped["message"] == "Application stopped successfully"
    assert stack.containers(stack.apps / "plain") == []
    shown = stack.app(app_id)
    assert (shown["status"], shown["startedAt"], shown["stopAt"]) == ("stopped", None, None)
    assert {"START", "STOP"} <= {e["action"] for e in stack.api.get("/api/audit-logs").expect(200)["logs"]}


def test_restart_creates_new_containers_and_a_new_run(stack: Stack) -> None:
    app_id = stack.make_app("again", SLEEPER)
    first = stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    second = stack.api.post(f"/api/apps/{app_id}/restart").expect(200)
    assert second["message"] == "Application restarted successfully"
    assert "Container again-web-1 Recreated" in second["output"].splitlines()
    assert second["startedAt"] > first["startedAt"]
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_host_changes_are_shown_without_polling(stack: Stack) -> None:
    app_id = stack.make_app("watched", SLEEPER, autoStopTimeout=7)
    # Started manually, without Moorage: it gets a run, and so a deadline.
    stack.compose(stack.apps / "watched", "up", "-d")
    shown = stack.wait_app(app_id, status="running")
    # It shows its real start; its run counts from the discovery.
    assert 0 <= shown["stopAt"] - shown["startedAt"] - 7 * 60_000 < 5_000
    client = docker.APIClient(base_url=stack.engine.host, version="auto")
    client.kill("watched-web-1")
    client.close()
    shown = stack.wait_app(app_id, status="stopped", startedAt=None, stopAt=None)
    changes = [e for e in stack.audit("STATUS_CHANGE") if e["resourceId"] == app_id]
    assert [e["data"]["to"] for e in changes] == ["stopped", "running"]


def test_health_follows_container_states(stack: Stack) -> None:
    compose = f"""\
services:
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sleep 1000
    healthcheck: {{test: ["CMD", "test", "!", "-f", "/sick"], interval: 1s, retries: 1}}
"""
    app_id = stack.make_app("health", compose)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.wait_app(app_id, health="healthy")
    stack.compose(stack.apps / "health", "exec", "-T", "web", "touch", "/sick")
    assert stack.wait_app(app_id, health="unhealthy")["status"] == "running"
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_server_status_comes_from_a_fresh_check(stack: Stack) -> None:
    before = int(time.time() * 1000)
    status = stack.api.get(f"/api/servers/{stack.server_id}/status").expect(200)
    assert status["status"] == "online"
    assert status["lastChecked"] >= before
    assert status["uptime"] > 0
    assert isinstance(status["runningContainers"], int)
