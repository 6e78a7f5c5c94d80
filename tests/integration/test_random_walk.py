"""A random walk of requests and kills on a real host: the final status equals the Engine's.

MOORAGE_WALK_SEED and MOORAGE_WALK_STEPS choose another walk; a failure names its seed and what was done.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from moorage_common.docker.states import Health
from moorage_lab.api import Reply
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.waiting import eventually
from running_stack import IMAGE, Stack

NAMES = ("one", "two")
END = {"succeeded", "failed", "cancelled", "interrupted"}
SERVICE = f"image: {IMAGE}\n    init: true\n    stop_grace_period: 0s\n    command: sleep 1000"
PAIR = f"services:\n  web:\n    {SERVICE}\n  db:\n    {SERVICE}\n"
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def walked(engine: PrivateEngine, sample_image: str, tmp_path: Path) -> Iterator[Stack]:
    """Return a Moorage of this test's own: its parts are killed."""
    assert sample_image == IMAGE
    made = Stack(tmp_path, engine)
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Walk:
    """A random walk of actions on two apps, the controller and the agent."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack = stack
        self.random = random.Random(seed)  # noqa: S311 - a walk that can be walked again
        self.apps = {name: stack.make_app(name, PAIR) for name in NAMES}
        self.acknowledged: set[str] = set()
        self.ended: dict[str, Any] = {}
        self.done: list[str] = []

    def step(self) -> None:
        """Do something."""
        name = self.random.choice(NAMES)
        act = self.random.choice(
            [self.ask, self.ask, self.ask, self.cancel, self.kill, self.remove, self.by_hand, self.crash, self.crash]
        )
        act(name)

    def ask(self, name: str) -> None:
        """Ask for a start, a restart or a stop, and don't wait for it."""
        verb = self.random.choice(["start", "start", "restart", "stop"])
        reply = self.stack.api.post(f"/api/apps/{self.apps[name]}/{verb}", headers=ASYNC)
        self.done.append(f"{verb} {name}: {reply.status}")
        assert reply.status in {202, 409}, reply
        if reply.status == 202:
            self.acknowledged.add(reply.json["id"])

    def cancel(self, name: str) -> None:
        """Cancel the operation in flight on an app."""
        operation_id = self.stack.app(self.apps[name])["operationId"]
        if operation_id is not None:
            reply: Reply = self.stack.api.post(f"/api/operations/{operation_id}/cancel")
            self.done.append(f"cancel {name}: {reply.status}")
            assert reply.status in {200, 409, 503}, reply

    def kill(self, name: str) -> None:
        """Kill a container."""
        self._containers(name, lambda client, container: client.kill(container))

    def remove(self, name: str) -> None:
        """Remove a container by hand."""
        self._containers(name, lambda client, container: client.remove_container(container, force=True))

    def by_hand(self, name: str) -> None:
        """Start the app manually, unless an operation is in flight."""
        if self.stack.app(self.apps[name])["operationId"] is None:
            self.done.append(f"up by hand {name}")
            self.stack.compose(self.stack.apps / name, "up", "-d")

    def crash(self, _: str) -> None:
        """Kill the controller or the agent, and start it again."""
        parts: list[ControllerProcess | AgentProcess] = [self.stack.controller, self.stack.agent]
        part = self.random.choice(parts)
        self.done.append(f"kill {part.process.name}")
        part.kill()
        part.start()

    def _containers(self, name: str, act: Any) -> None:  # noqa: ANN401 - of the SDK's client and an id
        with closing(docker.APIClient(base_url=self.stack.engine.host, version="auto")) as client:
            rows = client.containers(filters={"label": f"com.docker.compose.project={name}"})
            for row in rows[:1]:
                self.done.append(f"{row['Names'][0]} is killed or removed by hand")
                try:
                    act(client, row["Id"])
                except docker.errors.APIError:
                    self.done.append("it was gone already")

    def check(self) -> None:
        """Check what holds at every moment."""
        found = {each["id"]: each for each in self.stack.api.get("/api/operations?limit=1000").expect(200)}
        assert self.acknowledged <= found.keys()
        busy = Counter(each["appId"] for each in found.values() if each["state"] not in END)
        assert all(count == 1 for count in busy.values())
        for operation_id, before in self.ended.items():
            assert found[operation_id] == before
        self.ended = {key: each for key, each in found.items() if each["state"] in END}

    def settle(self) -> None:
        """Wait until nothing is in flight, and compare the API with the Engine."""
        self.stack.wait_online()
        eventually(lambda: not self._in_flight(), timeout=60, what="the end of all operations")
        for name in self.apps:
            eventually(partial(self._agrees, name), timeout=20, what=f"{name} true")
        self.check()

    def _in_flight(self) -> list[Any]:
        operations = self.stack.api.get("/api/operations?limit=1000").expect(200)
        return [each for each in operations if each["state"] not in END]

    def _agrees(self, name: str) -> bool:
        directory, app = self.stack.apps / name, self.stack.app(self.apps[name])
        running = self.stack.containers(directory, running=True)
        health = {0: Health.UNKNOWN, 1: Health.DEGRADED, 2: Health.HEALTHY}[len(running)]
        assert (app["status"], app["health"]) == ("running" if running else "stopped", health.value), (app, running)
        assert (app["stopAt"] is not None) == (app["startedAt"] is not None) == bool(running), app
        return True


@pytest.mark.timeout(600)
def test_random_walk_ends_with_true_status(walked: Stack) -> None:
    seed = int(os.environ.get("MOORAGE_WALK_SEED", "20261123"))
    steps = int(os.environ.get("MOORAGE_WALK_STEPS", "12"))
    walk = Walk(walked, seed)
    try:
        for n in range(1, steps + 1):
            walk.step()
            walk.check()
            if n % 6 == 0:
                walk.settle()
        walk.settle()
    except BaseException:
        print(f"seed {seed}: {'; '.join(walk.done)}")  # noqa: T201 - to walk it again
        raise
