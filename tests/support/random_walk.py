"""A controller on two fake hosts, and the actions of the random walk."""

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from database_copies import Copies
from factories import Api, World
from fakes import FakeHost, settle
from hypothesis.stateful import RuleBasedStateMachine

T = TypeVar("T")
HOSTS = ("10.0.0.1:7443", "10.0.0.2:7443")
PATHS = ("/srv/apps/one", "/srv/apps/two", "/srv/apps/three")
END = {"succeeded", "failed", "cancelled", "interrupted"}


class Walk(RuleBasedStateMachine):
    """A controller with two apps on one host and one on another; `copies` and `folder` are set by the test."""

    copies: Copies
    folder: Path
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = World(self.copies.make(self.folder / f"w{next(self.numbers)}"))
        self.hosts: list[FakeHost] = []
        self.app_ids: list[str] = []
        self.acknowledged: set[str] = set()
        self.ended: dict[str, Any] = {}
        self.stop_at: dict[str, int] = {}
        self.must_run: set[str] = set()
        """Apps that ran, and nothing was done to, when their host was cut off."""
        self.known: set[str] = set()
        self.agent_may_act: dict[str, int] = {}
        """By app, the moment from which on its agent stops it itself: a minute after the deadline that it knows."""
        self.steps = 0
        self.go(self.begin())

    def go(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and let all tasks settle."""

        async def whole() -> T:
            result = await work
            await settle()
            return result

        return self.runner.run(whole())

    async def begin(self) -> None:
        """Start the controller, and make the apps."""
        await self.world.start()
        made = await self.world.admin.post("/api/tokens", {"name": "walk", "scopes": ["read", "operate", "admin"]})
        self.token = made.expect(201)["token"]
        for n, endpoint in enumerate(HOSTS):
            server_id, host = await self.world.new_host(endpoint, name=f"host {n}")
            self.hosts.append(host)
            for path in PATHS[:2] if n == 0 else PATHS[2:]:
                app_id = await self.world.new_app(server_id, name=path[-3:], cdPath=path, autoStopTimeout=10)
                self.app_ids.append(app_id)

    @property
    def api(self) -> Api:
        """The API by a token that outlives every walk."""
        return Api(self.world.nobody.session, self.world.nobody.url, self.token)

    def host_of(self, n: int) -> FakeHost:
        """Return the host that an app is on."""
        return self.hosts[0 if n < 2 else 1]

    def touched(self, host: FakeHost) -> None:
        """Record that a host was changed directly: its apps may run or not."""
        for n, app_id in enumerate(self.app_ids):
            if self.host_of(n) is host:
                self.must_run.discard(app_id)

    def millis(self) -> int:
        """Return the time, as the API shows times."""
        return round(self.world.clock.now().timestamp() * 1000)

    def note_what_must_run(self, host: FakeHost) -> None:
        """Record the apps of a host that run without an operation in flight."""
        if host.engine_problem or host.silent:
            return
        for n, app_id in enumerate(self.app_ids):
            app = self.go(self.api.get(f"/api/apps/{app_id}")).expect(200)
            if self.host_of(n) is host and app["status"] == "running" and app["operationId"] is None:
                self.must_run.add(app_id)

    async def mend(self) -> None:
        """Clear all faults of the hosts."""
        for host in self.hosts:
            host.silent, host.refusal, host.lose_start = False, None, ""
            host.plans.clear()
            host.reachable = True
            if host.engine_problem:
                host.engine_problem = ""
            host.let_go()
            host.break_connections()
            self.touched(host)

    def in_flight(self) -> list[Any]:
        """Return the operations without a known end."""
        return [each for each in self.operations() if each["state"] not in END]

    def operations(self) -> list[Any]:
        """Return all operations."""
        found: list[Any] = self.go(self.api.get("/api/operations?limit=1000")).expect(200)
        return found
