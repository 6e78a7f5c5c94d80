"""Apps as found in the field: unusual directories, unusual Compose files, and broken ones."""

from pathlib import Path

import pytest
from running_stack import IMAGE, SLEEPER, Stack


def _start(stack: Stack, app_id: str) -> None:
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert stack.app(app_id)["status"] == "running"


def _stop(stack: Stack, app_id: str) -> None:
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.app(app_id)["status"] == "stopped"


@pytest.mark.parametrize("name", ["with space", "quo'te", 'dou"ble', "semi; touch x", "$(touch x)", "ünïcode", "-dash"])
def test_directory_with_any_name_works(stack: Stack, name: str) -> None:
    directory = stack.apps / "odd" / name
    app_id = stack.make_app(f"odd {name}", f"name: odd{name.encode().hex()}\n{SLEEPER}", directory)
    _start(stack, app_id)
    assert stack.containers(directory, running=True) == ["web"]
    _stop(stack, app_id)
    assert stack.containers(directory) == []
    assert not list(stack.apps.rglob("x"))


def test_symlinked_directory_works(stack: Stack) -> None:
    real = stack.apps / "real-place"
    link = stack.apps / "link"
    real.mkdir()
    link.symlink_to(real)
    app_id = stack.make_app("linked", SLEEPER, link)
    _start(stack, app_id)
    assert stack.containers(real, running=True) == ["web"]
    _stop(stack, app_id)
    assert stack.containers(real) == []


def test_compose_file_named_in_dot_env_works(stack: Stack) -> None:
    directory = stack.apps / "elsewhere"
    (directory / "deploy").mkdir(parents=True)
    (directory / ".env").write_text("COMPOSE_FILE=deploy/prod.yaml\n")
    (directory / "deploy" / "prod.yaml").write_text(SLEEPER)
    app_id = stack.make_app("elsewhere", None, directory)
    _start(stack, app_id)
    stack.wait_app(app_id, health="healthy")
    assert stack.containers(directory, running=True) == ["web"]
    _stop(stack, app_id)
    assert stack.containers(directory) == []


def test_project_name_changed_after_start_is_still_stopped(stack: Stack) -> None:
    app_id = stack.make_app("renamed", f"name: before\n{SLEEPER}")
    _start(stack, app_id)
    (stack.apps / "renamed" / "compose.yaml").write_text(f"name: after\n{SLEEPER}")
    _stop(stack, app_id)
    assert stack.containers(stack.apps / "renamed") == []


def test_stop_works_without_compose_file(stack: Stack) -> None:
    app_id = stack.make_app("gone", SLEEPER)
    _start(stack, app_id)
    (stack.apps / "gone" / "compose.yaml").unlink()
    _stop(stack, app_id)
    assert stack.containers(stack.apps / "gone") == []


def test_directories_with_same_name_stay_separate(stack: Stack) -> None:
    first_directory, second_directory = stack.apps / "a" / "twin", stack.apps / "b" / "twin"
    first = stack.make_app("twin a", SLEEPER, first_directory)
    second_directory.mkdir(parents=True)
    # Without a Compose file in it, the project's name is unknown.
    second = stack.make_app("twin b", None, second_directory)
    (second_directory / "compose.yaml").write_text(SLEEPER)
    third = {
        "name": "c",
        "projectId": stack.project_id,
        "serverId": stack.server_id,
        "cdPath": str(stack.apps / "c/twin"),
    }
    (stack.apps / "c" / "twin").mkdir(parents=True)
    (stack.apps / "c" / "twin" / "compose.yaml").write_text(SLEEPER)
    known = stack.api.post("/api/apps", third).expect(409)
    assert (known["code"], "twin a" in known["error"]) == ("project_taken", True)
    _start(stack, first)
    refused = stack.api.post(f"/api/apps/{second}/start").expect(409)
    assert refused["code"] == "project_taken"
    assert str(first_directory) in refused["error"]
    shown = stack.app(second)
    assert (shown["status"], shown["lastError"]) == ("stopped", refused["error"])
    _stop(stack, second)
    assert stack.containers(first_directory, running=True) == ["web"]
    assert stack.app(first)["status"] == "running"
    _stop(stack, first)
    _start(stack, second)
    _stop(stack, second)


def test_stop_removes_profiled_service_and_one_off_container(stack: Stack) -> None:
    extra = f"  extra: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000, profiles: [x]}}\n"
    app_id = stack.make_app("profiled", SLEEPER + extra)
    directory = stack.apps / "profiled"
    _start(stack, app_id)
    stack.compose(directory, "--profile", "x", "up", "-d", "extra")
    stack.compose(directory, "run", "-d", "web", "sleep", "500")
    assert stack.containers(directory, running=True) == ["extra", "web", "web"]
    _stop(stack, app_id)
    assert stack.containers(directory) == []


def test_one_shot_exit_0_is_done_and_not_degraded(stack: Stack) -> None:
    app_id = stack.make_app("one-shot", f"{SLEEPER}  migrate: {{image: '{IMAGE}', command: 'true'}}\n")
    _start(stack, app_id)
    assert stack.wait_app(app_id, health="healthy")["lastError"] is None
    _stop(stack, app_id)


@pytest.mark.parametrize(
    ("name", "compose", "said"),
    [
        ("no-file", None, "no configuration file provided"),
        ("typo", "servces: {}\n", "additional properties 'servces' not allowed"),
        ("no-image", "services: {a: {image: 'moorage.invalid/not-there:1'}}\n", "moorage.invalid"),
    ],
)
def test_start_that_fails_shows_compose_error(stack: Stack, name: str, compose: str | None, said: str) -> None:
    (stack.apps / name).mkdir()
    app_id = stack.make_app(name, compose)
    failed = stack.api.post(f"/api/apps/{app_id}/start").expect(502)
    assert failed["code"] == "compose_failed"
    assert said in failed["error"]
    assert said in failed["output"]
    shown = stack.app(app_id)
    assert (shown["status"], shown["stopAt"]) == ("stopped", None)
    assert said in shown["lastError"]
    assert stack.operation(failed["operationId"])["state"] == "failed"


def test_missing_directory_is_reported(stack: Stack) -> None:
    app_id = stack.make_app("nowhere", None)
    failed = stack.api.post(f"/api/apps/{app_id}/start").expect(502)
    assert failed["code"] == "directory_missing"
    assert str(stack.apps / "nowhere") in failed["error"]
    _stop(stack, app_id)


def test_partially_failed_start_leaves_a_run_with_deadline(stack: Stack) -> None:
    broken = f"  broken: {{image: '{IMAGE}', command: /not/there, depends_on: [web]}}\n"
    app_id = stack.make_app("half", f"{SLEEPER}{broken}", autoStopTimeout=5)
    failed = stack.api.post(f"/api/apps/{app_id}/start").expect(502)
    assert "/not/there" in failed["error"]
    shown = stack.app(app_id)
    assert (shown["status"], shown["health"]) == ("running", "degraded")
    assert shown["lastError"] == failed["error"]
    assert shown["stopAt"] == shown["startedAt"] + 5 * 60_000
    _stop(stack, app_id)
    assert stack.app(app_id)["lastError"] is None


@pytest.mark.parametrize("outside", ["/etc", "/", "{apps}-beside", "{apps}/way-out"])
def test_directory_outside_allowed_roots_is_refused(stack: Stack, outside: str) -> None:
    way_out = stack.apps / "way-out"
    if not way_out.is_symlink():
        way_out.symlink_to("/etc")
    app_id = stack.make_app(f"outside {outside}", None, Path(outside.format(apps=stack.apps)))
    for action in ("start", "stop"):
        refused = stack.api.post(f"/api/apps/{app_id}/{action}").expect(403)
        assert refused["code"] == "path_not_allowed"
        assert str(stack.apps) in refused["error"]
    assert stack.app(app_id)["status"] == "stopped"
