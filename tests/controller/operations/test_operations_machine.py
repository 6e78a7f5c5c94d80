"""Random sequences of requests and faults: no operation is lost, and the status stays true."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import hypothesis
import pytest
from database_copies import Copies
from factories import Reply
from fakes import Plan, Refusal
from hypothesis import HealthCheck, note
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from moorage_common.docker.states import OperationKind, judge, observed_status
from random_walk import END, PATHS, Walk

SQLITE_ONLY = "what is tested is the order of things, which is the same on both"
LONGEST_SECONDS = 600
"""Time until every operation has ended, once all hosts answer and no command hangs."""

apps = st.integers(0, 2)
hosts = st.integers(0, 1)


class Machine(Walk):
    """Requests of people, and faults."""

    @rule(n=apps, verb=st.sampled_from(["start", "start", "stop", "restart"]))
    def ask(self, n: int, verb: str) -> None:
        """Ask for a start, a stop or a restart."""
        reply = self.go(
            self.api.send("POST", f"/api/apps/{self.app_ids[n]}/{verb}", headers={"Prefer": "respond-async"})
        )
        note(f"{verb} {n}: {reply.status}")
        assert reply.status in {202, 409}, reply.text
        if reply.status == 202:
            self.acknowledged.add(reply.json["id"])

    @rule(n=apps)
    def cancel(self, n: int) -> None:
        """Cancel the operation in flight on an app."""
        operation_id = self.go(self.api.get(f"/api/apps/{self.app_ids[n]}")).expect(200)["operationId"]
        if operation_id is not None:
            cancelling = self.api.post(f"/api/operations/{operation_id}/cancel")

            async def waited() -> int:
                task = asyncio.create_task(cancelling)
                await self.world.clock.run(31)
                return (await task).status

            assert self.go(waited()) in {200, 409, 503}

    @rule(n=apps, minutes=st.sampled_from([1, 10, 60]))
    def change_the_timeout(self, n: int, minutes: int) -> None:
        """Move an app's deadline."""
        changing = self.api.put(f"/api/apps/{self.app_ids[n]}", {"autoStopTimeout": minutes})

        async def waited() -> Reply:
            task = asyncio.create_task(changing)
            await self.world.clock.run(6)
            return await task

        assert self.go(waited()).status in {200, 503}

    @rule(n=apps, body=st.sampled_from([{"minutes": 1}, {"minutes": 30}, {"until": 30}, {"until": 300}]))
    def extend(self, n: int, body: dict[str, int]) -> None:
        """Move the end of a run: later, or to a number of seconds from now."""
        if "until" in body:
            body = {"until": self.millis() + body["until"] * 1000}
        app = self.go(self.api.get(f"/api/apps/{self.app_ids[n]}")).expect(200)
        extending = self.api.post(f"/api/apps/{self.app_ids[n]}/extend", body)

        async def waited() -> Reply:
            task = asyncio.create_task(extending)
            await self.world.clock.run(6)
            return await task

        reply = self.go(waited())
        note(f"extend {n}: {reply.status}")
        assert reply.status in {200, 409, 503}, reply.text
        if reply.status == 200:
            wanted = body.get("until", (app["stopAt"] or 0) + 60_000 * body.get("minutes", 0))
            # The minutes of an overdue run count from now.
            assert reply.json["stopAt"] >= wanted
            assert reply.json["overdue"] is False

    @rule(seconds=st.sampled_from([-3000, -3, 3, 3000]))
    def clock_is_set(self, seconds: int) -> None:
        """Set the wall clock; within half a minute it is noticed."""
        self.world.clock.jump(seconds)
        for deadlines in (self.stop_at, self.agent_may_act):
            for key in deadlines:
                deadlines[key] += seconds * 1000
        self.go(self.world.clock.run(31))

    @rule(n=apps)
    def agent_acts(self, n: int) -> None:
        """Let an agent stop an app itself, if its deadline allows it."""
        host, app_id = self.host_of(n), UUID(self.app_ids[n])
        may = self.agent_may_act.get(self.app_ids[n])
        known = host.deadlines.get(app_id)
        busy = any(r.end is None and r.order and r.order.app.cd_path == PATHS[n] for r in host.journal.values())
        if may is not None and may <= self.millis() and known and known[1].run_id and not busy and not host.refusal:
            row = self.go(self.world.row(self.app_ids[n]))
            assert row.stop_at is None or row.stop_at <= self.world.clock.now(), "its agent would stop it too early"
            self.touched(host)
            self.go(host.act_alone(app_id))

    @rule(seconds=st.sampled_from([0.3, 1, 5, 20, 70, 700]))
    def time_passes(self, seconds: float) -> None:
        """Let time pass."""
        self.go(self.world.clock.run(seconds))

    @rule(n=apps, services=st.sampled_from([(), ("web",), ("web", "db")]))
    def run_by_hand(self, n: int, services: tuple[str, ...]) -> None:
        """Let only these services run: started manually, or the others exited."""
        host = self.host_of(n)
        self.touched(host)

        async def act() -> None:
            host.set_running(PATHS[n], services)

        self.go(act())

    @rule(n=apps, health=st.sampled_from(["", "starting", "healthy", "unhealthy"]))
    def health_changes(self, n: int, health: str) -> None:
        """Have the health checks of an app's running containers say something."""
        host, path = self.host_of(n), PATHS[n]

        async def act() -> None:
            app = host.app(path)
            app.containers = [replace(c, health=health if c.alive else "") for c in app.containers]
            host.push(host.observation(path))

        self.go(act())

    @rule(n=apps)
    def containers_are_removed(self, n: int) -> None:
        """Remove all containers of an app by hand."""
        host, path = self.host_of(n), PATHS[n]
        self.touched(host)

        async def act() -> None:
            host.app(path).containers = []
            host.push(host.observation(path))

        self.go(act())

    @rule(n=hosts, what=st.sampled_from(["cut", "back", "silent", "break", "engine", "engine back"]))
    def network(self, n: int, what: str) -> None:
        """Disconnect a host, break its open calls, or fail its Engine."""
        host = self.hosts[n]

        async def act() -> None:
            match what:
                case "cut" | "back":
                    host.reachable = what == "back"
                case "silent":
                    host.silent = not host.silent
                    host.break_connections()
                case "break":
                    host.break_connections()
                case "engine":
                    host.engine_problem = "It burns."
                case _:
                    host.engine_problem = ""

        if what == "cut" and host.reachable:
            self.note_what_must_run(host)
        elif what != "cut":
            self.touched(host)
        self.go(act())

    @rule(n=hosts, when=st.sampled_from(["before", "after"]))
    def next_start_is_lost(self, n: int, when: str) -> None:
        """Break the connection while the next operation is sent."""
        self.hosts[n].lose_start = "before" if when == "before" else "after"

    @rule(n=hosts)
    def power_cut(self, n: int) -> None:
        """Lose all runs of a host, and all its containers."""
        host = self.hosts[n]
        self.touched(host)

        async def act() -> None:
            host.lose_runs()
            for path in host.apps:
                host.set_running(path, [])

        self.go(act())

    @rule(n=hosts, hangs=st.booleans())
    def commands_hang(self, n: int, *, hangs: bool) -> None:
        """Let no command end, or all."""

        async def act() -> None:
            if hangs:
                self.hosts[n].hold()
            else:
                self.hosts[n].let_go()

        self.go(act())
        self.touched(self.hosts[n])

    @rule(n=hosts, leaves=st.sampled_from([None, (), ("web",)]))
    def starts_fail(self, n: int, leaves: tuple[str, ...] | None) -> None:
        """Let starts fail from now on, and leave some services running; None: they succeed again."""
        plans = self.hosts[n].plans
        for kind in (OperationKind.UP, OperationKind.RESTART):
            if leaves is None:
                plans.pop(kind, None)
            else:
                plans[kind] = Plan(exit_code=1, output=b'{"error":true,"message":"no"}\n', leaves=leaves)

    @rule(n=hosts, code=st.sampled_from(["", "path_not_allowed", "journal_full"]))
    def host_refuses(self, n: int, code: str) -> None:
        """Let a host refuse all operations from now on."""
        self.hosts[n].refusal = Refusal(code, "No.") if code else None

    @rule()
    def controller_restarts(self) -> None:
        """Stop the controller at any point, and start the next one."""
        self.go(self.world.restart())

    @rule()
    def all_is_quiet(self) -> None:
        """Clear all faults, wait until all has ended, and compare the API with the hosts."""
        self.go(self.mend())
        for _ in range(LONGEST_SECONDS // 20):
            self.go(self.world.clock.run(20))
            if not self.in_flight():
                break
        assert not self.in_flight(), "an operation doesn't come to its end"
        self.go(self.world.clock.run(20))
        while self.in_flight():  # an auto-stop that was due
            self.go(self.world.clock.run(20))
        for n in range(len(PATHS)):
            self.check_truth(n)

    def check_truth(self, n: int) -> None:
        """Compare an app with its containers."""
        app = self.go(self.api.get(f"/api/apps/{self.app_ids[n]}")).expect(200)
        row = self.go(self.world.row(self.app_ids[n]))
        containers = self.host_of(n).app(PATHS[n]).containers
        _, held = self.host_of(n).deadlines.get(UUID(self.app_ids[n]), ("", None))
        assert app["status"] == observed_status(containers).value, (app, containers)
        assert app["health"] == judge(containers, {}).health.value, (app, containers)
        if app["status"] == "running":
            assert row.run_id is not None
            assert app["startedAt"] is not None
            assert app["stopAt"] > self.millis(), "it is overdue, and nobody stops it"
            assert app["overdue"] is False
            assert held is not None
            assert (held.run_id, held.number) == (row.run_id, row.deadline_number), "its agent knows another deadline"
        else:
            assert held is None or held.run_id is None, "its agent knows a deadline of what doesn't run"
            assert (row.run_id, row.stop_at, app["startedAt"], app["stopAt"]) == (None, None, None, None)

    @invariant()
    def operations_are_kept(self) -> None:
        """Check what holds at every moment."""
        self.steps += 1
        found = {each["id"]: each for each in self.operations()}
        assert self.acknowledged <= found.keys(), "an operation that was acknowledged is gone"
        busy = Counter(each["appId"] for each in found.values() if each["state"] not in END)
        assert all(count == 1 for count in busy.values()), "two operations are in flight on one app"
        for operation_id, before in self.ended.items():
            assert found[operation_id] == before, "an end was changed"
        for operation_id, each in found.items():
            if each["actor"] == "auto-stop" and operation_id not in self.acknowledged:
                assert each["createdAt"] >= self.stop_at.get(each["appId"], 0), "it was stopped before its time"
        self.note_what_agents_know()
        self.acknowledged |= found.keys()
        self.ended = {key: each for key, each in found.items() if each["state"] in END}

    def note_what_agents_know(self) -> None:
        """Record when agents act by themselves; never before the shown end of the run."""
        now = self.millis()
        for host in self.hosts:
            for app_id, (_, deadline) in host.deadlines.items():
                key = f"{app_id} {deadline.number} {deadline.run_id} {deadline.remaining}"
                if deadline.remaining is not None and key not in self.known:
                    self.known.add(key)
                    self.agent_may_act[str(app_id)] = now + round(deadline.remaining.total_seconds() * 1000) + 60_000

    @invariant()
    def apps_are_told_truly(self) -> None:
        """Check that apps on unreachable hosts aren't shown as stopped, and record the deadlines."""
        for n, app_id in enumerate(self.app_ids):
            app = self.go(self.api.get(f"/api/apps/{app_id}")).expect(200)
            if app_id in self.must_run:
                assert app["status"] != "stopped", "a host that can't be asked turned an app to stopped"
            self.stop_at.pop(app_id, None)
            if app["stopAt"] is not None and self.host_of(n).reachable:
                self.stop_at[app_id] = app["stopAt"]
            # A stop of a stopped app has no run to end.
            if app["status"] == "running" or app["startedAt"] is not None:
                assert app["stopAt"] is not None, "it runs, and nobody will ever stop it"
        for host in self.hosts:
            for run in host.journal.values():
                assert run.starts <= 1, "a command was run twice"

    def teardown(self) -> None:
        """End the walk without errors, as it may end at any time."""
        try:
            if self.app_ids:
                self.all_is_quiet()
        finally:
            self.runner.run(self.world.close())
            self.runner.close()
            self.copies.drop(self.world.settings)


@pytest.mark.timeout(600)
def test_random_sequence_loses_no_operation_and_keeps_status_true(copies: Copies, tmp_path: Path) -> None:
    Machine.copies, Machine.folder = copies, tmp_path
    searching = hypothesis.settings().max_examples > 1000
    run_state_machine_as_test(
        Machine,
        settings=hypothesis.settings(
            max_examples=60 if searching else 4,
            stateful_step_count=40 if searching else 20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
