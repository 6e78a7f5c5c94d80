"""Hosts that don't answer, and hosts whose disk is full."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack import SLEEPER, Stack


def test_an_unreachable_agent_is_told_at_once(stack: Stack) -> None:
    app_id = stack.make_app("unreachable", SLEEPER)
    stack.agent.kill()
    try:
        began = time.monotonic()
        refused = stack.api.post(f"/api/apps/{app_id}/start").expect(503)
        took = time.monotonic() - began
        assert refused["code"] == "host_unreachable"
        assert stack.agent.address in refused["error"]
        assert took < 10
        shown = stack.app(app_id)
        assert (shown["status"], shown["stopAt"], shown["operationId"]) == ("stopped", None, None)
        assert shown["lastError"] == refused["error"]
        server = stack.api.get(f"/api/servers/{stack.server_id}/status").expect(200)
        assert (server["status"], server["runningContainers"]) == ("offline", 0)
    finally:
        stack.agent.start()
    stack.wait_online()
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    assert stack.app(app_id)["lastError"] is None
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_a_full_disk_under_the_journal_says_so(stack: Stack) -> None:
    app_id = stack.make_app("full", SLEEPER)
    with _full_disk(stack.agent.folder / "data" / "operations"):
        refused = stack.api.post(f"/api/apps/{app_id}/start").expect(503)
        assert refused["code"] == "journal_full"
        assert "disk" in refused["error"]
        shown = stack.app(app_id)
        assert (shown["status"], shown["lastError"]) == ("stopped", refused["error"])
        assert stack.containers(stack.apps / "full") == []
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_an_engine_that_is_down_is_said_and_seen(stack: Stack) -> None:
    app_id = stack.make_app("no-engine", SLEEPER)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.engine.kill()
    try:
        stack.wait_server(status="offline")
        refused = stack.api.post(f"/api/apps/{app_id}/stop").expect(503)
        assert refused["code"] == "engine_unreachable"
        # Not known is not stopped.
        shown = stack.app(app_id)
        assert (shown["status"], shown["health"]) == ("running", "unknown")
        assert shown["stopAt"] is not None
    finally:
        stack.engine.start()
    stack.wait_online()
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(stack.apps / "no-engine") == []


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Put a small file system over a folder, and fill it up."""
    size = ["-o", "size=64k,mode=3770"]
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", *size, "tmpfs", str(folder)], check=True)
    try:
        with (folder / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        yield
    finally:
        subprocess.run(["/usr/bin/umount", str(folder)], check=True)
