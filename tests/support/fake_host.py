"""A Docker host in memory: apps' containers, a journal of operations, and switches for faults."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Literal
from uuid import UUID, uuid4

from fake_host_parts import Change, FakeApp, FakeRun, Plan, Refusal
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, OperationKind, Project
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    EndKind,
    HostApp,
    HostInfo,
    HostProject,
    HostRefusedError,
    Order,
    Output,
    Snapshot,
    WatchItem,
)


class FakeHost:
    """A Docker host in memory, with a journal, and switches for faults.

    Switches: `reachable`, `silent` (connections stay open without replies), `engine_problem`, `lose_start`, `cut_after`
    (bytes after which one follow breaks), `refusal`, `plans`, and `hold`/`let_go` for long-running commands.
    """

    def __init__(self) -> None:
        self.apps: dict[str, FakeApp] = {}
        self._links: dict[str, str] = {}
        self.journal: dict[UUID, FakeRun] = {}
        self.plans: dict[OperationKind, Plan] = {}
        self.silent = False
        self.lose_start: Literal["", "before", "after"] = ""
        self.cut_after: int | None = None
        self.refusal: Refusal | None = None
        self.on_start: Callable[[Order], Awaitable[None]] | None = None
        self.follows: list[int] = []
        self.cancels: list[tuple[UUID, str]] = []
        self.boot_id = "boot-1"
        self._reachable = True
        self._engine_problem = ""
        self._disk_problem = ""
        self._cuts = 0
        self._looked_at = 0
        self._open = True
        self._let_go: set[str] = set()
        self._changed = Change()
        self._watches: dict[asyncio.Queue[WatchItem | None], set[str]] = {}
        self.on_deadline: Callable[[], Awaitable[object]] | None = None
        """Called once, after the next explicitly set deadline was kept."""
        self.deadlines: dict[UUID, tuple[str, Deadline]] = {}
        """By app, its directory and what its agent knows."""
        self.stops: dict[UUID, UUID] = {}
        """By app, the operation by which the agent stopped it itself."""

    @property
    def reachable(self) -> bool:
        """Whether the network to it works; setting it to False breaks all open calls."""
        return self._reachable

    @reachable.setter
    def reachable(self, value: bool) -> None:
        self._reachable = value
        if not value:
            self.break_connections()

    @property
    def engine_problem(self) -> str:
        """A sentence while the Engine doesn't answer."""
        return self._engine_problem

    @engine_problem.setter
    def engine_problem(self, value: str) -> None:
        self._engine_problem = value
        self._push_all(self.host_info())
        if not value:
            for path in self.apps:
                self.push(self.observation(path))

    @property
    def disk_problem(self) -> str:
        """A sentence while the host's disk is full or nearly full; its agent then keeps no deadlines."""
        return self._disk_problem

    @disk_problem.setter
    def disk_problem(self, value: str) -> None:
        self._disk_problem = value
        self._push_all(self.host_info())

    @property
    def commands(self) -> list[tuple[OperationKind, str]]:
        """The commands that ran, in order: kind and directory."""
        return [(run.order.kind, run.order.app.cd_path) for run in self.journal.values() if run.order and run.starts]

    def break_connections(self) -> None:
        """Cut every watch and every follow once."""
        for queue in self._watches:
            queue.put_nowait(None)
        self._cuts += 1
        self._changed.tell()

    def app(self, cd_path: str) -> FakeApp:
        """Return the app in a directory; every directory has one."""
        return self.apps.setdefault(self._links.get(cd_path, cd_path), FakeApp())

    def link(self, path: str, directory: str) -> None:
        """Make a path a symbolic link to a directory."""
        self._links[path] = directory

    def hold(self) -> None:
        """Block all commands until `let_go`, unless they are terminated."""
        self._open = False

    def let_go(self) -> None:
        """Let all commands end."""
        self._open = True
        self._changed.tell()

    def let_go_of(self, cd_path: str) -> None:
        """Let the commands in one directory end, from here on."""
        self._let_go.add(cd_path)
        self._changed.tell()

    def say(self, cd_path: str, data: bytes) -> None:
        """Print output of the running command in a directory."""
        for run in self.journal.values():
            if run.end is None and run.order is not None and run.order.app.cd_path == cd_path:
                self._print(run, data)

    def lose_runs(self) -> None:
        """Lose every running command as in a power cut: the journal has its start, without its end."""
        for run in self.journal.values():
            if run.end is None and run.task is not None:
                run.task.cancel()
                run.end = End(EndKind.LOST, length=len(run.output))
        self._changed.tell()

    def set_running(self, cd_path: str, services: Sequence[str], others: Sequence[str] = ()) -> None:
        """Set these services' containers to running, all others to exited, and notify the watchers.

        `others` are services that get exited containers in addition to the existing ones.
        """
        app = self.app(cd_path)
        project = PurePosixPath(cd_path).name
        known = {c.service for c in app.containers} | set(services) | set(others)
        app.containers = [
            ContainerState(
                id=f"{project}-{service}",
                name=f"{project}-{service}-1",
                service=service,
                image="sample:1",
                state="running" if service in services else "exited",
                exit_code=0 if service in services else 137,
            )
            for service in sorted(known)
        ]
        self.push(self.observation(cd_path))

    def observation(self, cd_path: str) -> AppObservation:
        """Look at an app's containers now."""
        self._looked_at += 1_000_000
        app = self.app(cd_path)
        real = self._links.get(cd_path, cd_path)
        project = Project(PurePosixPath(real).name, real) if app.containers else None
        here = {app_id: held for app_id, (path, held) in self.deadlines.items() if path == cd_path}
        return AppObservation(
            cd_path,
            project,
            tuple(app.containers),
            self._looked_at,
            self.boot_id,
            deadlines={app_id: held.number for app_id, held in here.items() if held.run_id is not None},
            stops={app_id: stop for app_id, stop in self.stops.items() if app_id in here},
        )

    def keep(self, cd_path: str, deadline: Deadline) -> None:
        """Keep a deadline; an older number changes nothing."""
        known = self.deadlines.get(deadline.app_id)
        if known is None or deadline.number >= known[1].number:
            self.deadlines[deadline.app_id] = (cd_path, deadline)
            self.push(self.observation(cd_path))

    async def act_alone(self, app_id: UUID) -> UUID:
        """Stop an app as its agent does a minute after its deadline; return the operation's id."""
        path, deadline = self.deadlines[app_id]
        order = Order(uuid4(), OperationKind.DOWN, HostApp(path))
        await self.launch(order)
        self.stops[app_id] = order.operation_id
        self.deadlines[app_id] = (path, Deadline(app_id, deadline.number))
        self.push(self.observation(path))
        return order.operation_id

    def host_info(self) -> HostInfo:
        """Return the host's facts."""
        running = sum(c.alive for app in self.apps.values() for c in app.containers)
        return HostInfo(
            not self._engine_problem,
            self._engine_problem,
            running,
            4711,
            "0.1.0",
            "20.10.24",
            "5.6.1",
            keeps_deadlines=not self._disk_problem,
            disk_problem=self._disk_problem,
        )

    def projects(self) -> list[HostProject]:
        """Return the apps that have containers."""
        return [
            HostProject(Project(PurePosixPath(path).name, path), tuple(app.containers))
            for path, app in self.apps.items()
            if app.containers
        ]

    def write(self, cd_path: str, service: str, text: str) -> None:
        """Have a service's container write a line."""
        self._looked_at += 1
        time = f"2026-03-04T05:06:07.{self._looked_at:09d}Z"
        line = LogLine(time, f"{PurePosixPath(cd_path).name}-{service}-1", service, text)
        self.app(cd_path).logs.append(line)
        self._changed.tell()

    async def read_logs(self, cd_path: str, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield the containers' log lines, and with `follow` the later ones."""
        app, cuts = self.app(cd_path), self._cuts
        position = len(app.logs)
        if wanted.service and wanted.service not in {c.service for c in app.containers}:
            raise HostRefusedError("service_not_found", f"The app has no container of a service {wanted.service}.")
        chosen = [x for x in app.logs if x.time > wanted.since and wanted.service in {"", x.service}]
        names = {line.container for line in chosen}
        last = {name: [x for x in chosen if x.container == name][-wanted.tail or len(chosen) :] for name in names}
        if wanted.tail != 0 and (batch := [x for x in chosen if wanted.tail < 0 or x in last[x.container]]):
            yield batch
        while wanted.follow:
            if not self._reachable or self._cuts != cuts:
                raise ContactLostError("The connection broke.")
            if position == len(app.logs):
                await self._changed.wait()
                continue
            new, position = app.logs[position:], len(app.logs)
            if batch := [x for x in new if wanted.service in {"", x.service}]:
                yield batch

    def push(self, observation: AppObservation) -> None:
        """Send an observation to all watchers of that app."""
        if not self._engine_problem:
            for queue, paths in self._watches.items():
                if observation.cd_path in paths:
                    queue.put_nowait(observation)

    def _push_all(self, item: WatchItem) -> None:
        for queue in self._watches:
            queue.put_nowait(item)

    async def launch(self, order: Order) -> None:
        """Start a command, or attach to it; the host's side of a start."""
        if self.on_start is not None:
            await self.on_start(order)
        known = self.journal.get(order.operation_id)
        if known is not None and known.order is not None:
            known.attached += 1
            return
        if known is not None and known.end is not None:
            return
        if self.refusal is not None:
            code, sentence = self.refusal.code, self.refusal.sentence
            if self.refusal.buries:
                self.journal[order.operation_id] = FakeRun(None, end=End(EndKind.BURIED, code=code, reason=sentence))
            raise HostRefusedError(code, sentence)
        if order.deadline is not None:
            self.keep(order.app.cd_path, order.deadline)
        run = self.journal[order.operation_id] = FakeRun(order, starts=1)
        run.task = asyncio.create_task(self._execute(run, order), name=f"fake {order.kind} {order.operation_id}")

    async def _execute(self, run: FakeRun, order: Order) -> None:
        path, plan = order.app.cd_path, self.plans.get(order.kind, Plan())
        services = self.app(path).services
        self._print(run, f'{{"id":"Container {path}","status":"Working","text":"{order.kind.value}"}}\n'.encode())
        while not (self._open or path in self._let_go or run.terminated):
            await self._changed.wait()
        if run.terminated:
            plan, code = Plan(leaves=tuple(c.service for c in self.app(path).containers if c.alive)), 130
        else:
            code = plan.exit_code
        self._print(run, plan.output)
        leaves = plan.leaves
        if leaves is None:
            leaves = () if order.kind is OperationKind.DOWN or code else services
        if order.kind is OperationKind.DOWN:
            # Containers removed by `down` are gone, not exited, and so are their logs.
            self.app(path).logs = [line for line in self.app(path).logs if line.service in leaves]
            self.app(path).containers = [c for c in self.app(path).containers if c.service in leaves]
        self.set_running(path, leaves, services if leaves and order.kind is not OperationKind.DOWN else ())
        if order.kind is not OperationKind.DOWN:
            for service in leaves:
                for text in self.app(path).says:
                    self.write(path, service, text)
        run.end = End(EndKind.EXITED, code, len(run.output), run.cancelled_by)
        self._changed.tell()

    def _print(self, run: FakeRun, data: bytes) -> None:
        run.output += data
        self._changed.tell()

    def stop(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Cancel: TERM to a running start, a tombstone for an unknown one."""
        self.cancels.append((operation_id, by))
        run = self.journal.get(operation_id)
        if run is None:
            reason = f"Cancelled by {by} before it started."
            end = End(EndKind.BURIED, cancelled_by=by, code="cancelled", reason=reason)
            self.journal[operation_id] = FakeRun(None, end=end)
            return CancelOutcome.BURIED
        if run.order is not None and run.order.kind is OperationKind.DOWN:
            raise HostRefusedError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
        if run.end is not None:
            return CancelOutcome.BURIED if run.end.kind is EndKind.BURIED else CancelOutcome.ALREADY_ENDED
        run.cancelled_by = by
        run.signals.append("TERM")
        run.terminated = True
        self._changed.tell()
        return CancelOutcome.SIGNALLED

    async def read(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end; breaks where the connection does."""
        self.follows.append(after)
        run, cuts = self.journal.get(operation_id), self._cuts
        if run is None:
            raise HostRefusedError("operation_unknown", "This host has never heard of that operation.")
        while True:
            if not self._reachable or self._cuts != cuts:
                raise ContactLostError("The connection broke.")
            data = bytes(run.output[after : self.cut_after])
            if data:
                yield Output(after, data)
                after += len(data)
            if self.cut_after is not None and after >= self.cut_after:
                self.cut_after = None
                raise ContactLostError("The connection broke in the middle of the output.")
            if after < len(run.output):
                continue
            if run.end is not None:
                self.stops = {app_id: stop for app_id, stop in self.stops.items() if stop != operation_id}
                yield self._with_observation(run, run.end)
                return
            await self._changed.wait()

    def _with_observation(self, run: FakeRun, end: End) -> End:
        if self._engine_problem or run.order is None:
            return end
        seen = self.observation(run.order.app.cd_path)
        return End(end.kind, end.exit_code, end.length, end.cancelled_by, end.code, end.reason, seen)

    async def watched(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change."""
        queue: asyncio.Queue[WatchItem | None] = asyncio.Queue()
        self._watches[queue] = {app.cd_path for app in apps}
        try:
            seen = () if self._engine_problem else tuple(self.observation(app.cd_path) for app in apps)
            yield Snapshot(self.host_info(), seen)
            while (item := await queue.get()) is not None:
                yield item
            raise ContactLostError("The connection broke.")
        finally:
            del self._watches[queue]

    async def close(self) -> None:
        """End the commands that still run."""
        for run in self.journal.values():
            if run.task is not None:
                run.task.cancel()
                with suppress(asyncio.CancelledError):
                    await run.task
