"""`moorage` on a terminal, with a real controller, agent and Engine: Ctrl-C, live logs, a controller that restarts."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moorage_lab.programs.controller import ADMIN
from moorage_lab.programs.processes import installed, plain_environment
from pseudo_terminal import Terminal
from running_stack import IMAGE, SLOW, Stack

HELD = SLOW.replace("sleep 10; touch /ready; ", "").replace("retries: 60", "retries: 600")
"""Its start continues until /ready is created in db."""
CHATTY = f"""\
services:
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sh -c "echo first; while [ ! -f /more ]; do sleep 0.1; done; echo second; sleep 1000"
"""


@pytest.fixture
def home(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a logged-in user."""
    environment = plain_environment(XDG_CONFIG_HOME=str(tmp_path), TERM="xterm", COLUMNS="120", LINES="40")
    argv = [installed("moorage"), "login", stack.controller.url, "-u", ADMIN, "--password-file", "-"]
    subprocess.run(
        argv, input=stack.controller.admin_password, text=True, check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return environment


@contextmanager
def terminal(home: dict[str, str], *argv: str) -> Iterator[Terminal]:
    """Run `moorage` on a terminal."""
    made = Terminal([installed("moorage"), *argv], home)
    try:
        yield made
    finally:
        made.close()


def test_ctrl_c_leaves_start_running_with_advice_to_resume(stack: Stack, home: dict[str, str]) -> None:
    app_id = stack.make_app("held", HELD)
    with terminal(home, "start", "held") as shown:
        shown.shows("Container held-db-1")
        shown.interrupt()
        assert shown.ends() == 130
        assert "The start of held goes on." in shown.text
    operation_id = shown.text.partition("moorage follow ")[2].partition(";")[0]
    assert stack.app(app_id)["status"] == "starting"
    with terminal(home, "follow", operation_id) as shown:
        shown.shows("held-db-1")
        # The controller restarts meanwhile: the terminal continues at the same position.
        stack.controller.restart()
        docker = ["docker", "--host", stack.engine.host, "exec", "held-db-1", "touch", "/ready"]
        subprocess.run(docker, check=True)
        assert shown.ends() == 0
        assert "The start succeeded." in shown.text
        assert "Started" in shown.text
    stopped = subprocess.run(
        [installed("moorage"), "stop", "held", "--json"], env=home, capture_output=True, text=True, check=True
    )
    assert json.loads(stopped.stdout)["state"] == "succeeded"
    assert stack.containers(stack.apps / "held") == []


def test_logs_are_followed_until_ctrl_c(stack: Stack, home: dict[str, str]) -> None:
    app_id = stack.make_app("chatty", CHATTY)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    with terminal(home, "logs", "-f", "chatty") as shown:
        shown.shows("| first")
        docker = ["docker", "--host", stack.engine.host, "exec", "chatty-web-1", "touch", "/more"]
        subprocess.run(docker, check=True)
        shown.shows("| second")
        shown.interrupt()
        assert shown.ends() == 0
    told = subprocess.run(
        [installed("moorage"), "logs", "chatty"], env=home, capture_output=True, text=True, check=True
    )
    assert [line.partition("| ")[2] for line in told.stdout.splitlines()] == ["first", "second"]
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
