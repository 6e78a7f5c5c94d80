"""Retries after a controller was killed before its reply: every request takes effect once."""

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.waiting import eventually

CALLERS = 8


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerProcess]:
    """Return a controller that runs alone."""
    with ControllerProcess(tmp_path, environment={"RATE_LIMIT_PER_MINUTE": "0"}) as running:
        yield running


def test_requests_interrupted_by_controller_kill_create_once(controller: ControllerProcess) -> None:
    admin = controller.admin()
    sent: list[str] = []
    heard: dict[str, object] = {}

    def create(key: str) -> None:
        heard[key] = admin.post("/api/projects", {"name": key}, headers={"Idempotency-Key": key}).expect(201)

    def go_on(caller: int) -> None:
        for number in count():
            key = f"caller-{caller}-{number}"
            sent.append(key)
            try:
                create(key)
            except OSError:
                return

    callers = [threading.Thread(target=go_on, args=(caller,)) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    eventually(lambda: len(heard) > CALLERS, what="some replies, with others under way")
    controller.kill()
    for caller in callers:
        caller.join(30)
    before = dict(heard)
    assert len(sent) == len(before) + CALLERS
    controller.start()
    for key in sent:
        create(key)
    assert {key: heard[key] for key in before} == before
    assert sorted(project["name"] for project in admin.get("/api/projects").expect(200)) == sorted(sent)
