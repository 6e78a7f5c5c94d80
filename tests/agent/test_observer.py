"""Races of the observer that are hard to reach from outside, each on a real Engine."""

import asyncio
import functools
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import docker
import pytest
from lone_agent import UP, Desk, LoneAgent, compose
from moorage_agent.apps.directories import Directories
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.apps.policy import write_policy
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.deadlines.state_disk import StateDisk
from moorage_agent.docker import watch
from moorage_agent.docker.engine import Engine, EngineFacts, EventStream
from moorage_agent.docker.observer import Observer
from moorage_agent.docker.watch import Heartbeat, HostState, Observation, Snapshot, Watcher, WatchItem
from moorage_common.docker.containers import Container
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.images import ensure_sample_image
from moorage_lab.programs.processes import installed
from running_stack import IMAGE, SLEEPER

P = ParamSpec("P")
T = TypeVar("T")


class Told:
    """The items of a watch."""

    def __init__(self, items: AsyncIterator[WatchItem]) -> None:
        self._items = items
        self.all: list[WatchItem] = []

    async def until(self, right: Callable[[WatchItem], bool], *, timeout: float = 20) -> WatchItem:  # noqa: ASYNC109  # tells what was seen
        """Read up to the first item that satisfies a condition."""
        seen: list[WatchItem] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                async for item in self._items:
                    self.all.append(item)
                    seen.append(item)
                    if right(item):
                        return item
        raise AssertionError(f"not within {timeout} s; told meanwhile: {seen}")


def nothing_held(beside: Path) -> Deadlines:
    """Return the deadlines of a host without any."""
    return Deadlines(beside.with_name("deadlines.json"), "boot")


@asynccontextmanager
async def watching(engine: Engine, directory: Path) -> AsyncIterator[Told]:
    """Observe an Engine, and watch one app on it."""
    file = directory.parent / "policy.toml"
    write_policy(file, [str(directory.parent)])
    observer = Observer(engine)
    reader = DirectoryReader(file, installed("docker-compose"), {"DOCKER_HOST": engine.host})
    known = Identities(reader)
    running = asyncio.create_task(observer.run())
    watcher = Watcher(observer, engine, known, nothing_held(file), StateDisk(file.parent))
    items = watcher.watch([WatchedApp(str(directory), None)])
    try:
        yield Told(items)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await items.aclose()  # type: ignore[attr-defined]  # a generator, declared as the iterator it is for callers
        reader.close()


def states(item: WatchItem) -> Sequence[str] | None:
    """Return the states of the app's containers, None where an item doesn't contain them."""
    if isinstance(item, Snapshot) and item.apps:
        return [c.state for c in item.apps[0].containers]
    return [c.state for c in item.containers] if isinstance(item, Observation) else None


def reachable(item: WatchItem) -> bool | None:
    """Return whether the Engine answers, None where an item doesn't contain it."""
    host = item.host if isinstance(item, Snapshot) else item
    return not host.engine_problem if isinstance(host, HostState) else None


@pytest.fixture
def app(tmp_path: Path) -> Path:
    made = tmp_path / f"observed-{tmp_path.name.replace('_', '-')}"
    made.mkdir()
    (made / "compose.yaml").write_text(SLEEPER)
    return made


@pytest.fixture
def running_app(engine: PrivateEngine, sample_image: str, app: Path) -> Iterator[Path]:
    """Return an app that runs on the shared Engine."""
    assert sample_image == IMAGE
    compose(engine, app, "up", "-d")
    yield app
    compose(engine, app, "down")


class Meddler(Engine):
    """An Engine with hooks just before or just after the reply to a chosen call."""

    __slots__ = ("after", "before", "stream")

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.before: dict[str, Callable[[], Any]] = {}
        self.after: dict[str, Callable[[], Any]] = {}
        self.stream: EventStream | None = None

    def facts(self) -> EngineFacts:
        """Query the facts, after the `before` hook."""
        self.before.pop("facts", lambda: None)()
        return super().facts()

    def events(self, since: int) -> EventStream:
        """Open the stream, after the `before` hook."""
        self.before.pop("events", lambda: None)()
        self.stream = super().events(since)
        return self.stream

    def containers(self, wanted: Callable[[Container], bool] = lambda _: True) -> dict[str, Container]:
        """Inspect all containers; the `after` hook runs before the result is returned."""
        found = super().containers(wanted)
        self.after.pop("containers", lambda: None)()
        return found


@pytest.mark.parametrize("moment", ["before the stream is open", "after all was looked at"])
async def test_no_event_is_lost_between_first_observation_and_stream(
    engine: PrivateEngine, running_app: Path, moment: str
) -> None:
    meddler = Meddler(engine.host)

    def kill() -> None:
        compose(engine, running_app, "kill")

    if moment.startswith("before"):
        meddler.before["events"] = kill
    else:
        meddler.after["containers"] = kill
    async with watching(meddler, running_app) as told:
        await told.until(lambda item: states(item) == ["exited"], timeout=5)
    assert (meddler.before, meddler.after) == ({}, {})


async def test_busy_host_still_sends_heartbeats(
    engine: PrivateEngine, running_app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_HEARTBEAT_SECONDS", 1.0)
    with closing(docker.APIClient(base_url=engine.host, version="auto")) as client:
        other = client.create_container(IMAGE, "sleep 1000", labels={"com.docker.compose.project": "noise"})
        client.start(other)

        async def make_noise() -> None:
            for number in itertools.count():
                await asyncio.to_thread(client.rename, other["Id"], f"noise-{number}")

        noise = asyncio.create_task(make_noise())
        try:
            async with watching(Engine(engine.host), running_app) as told:
                for _ in range(3):
                    await told.until(lambda item: isinstance(item, Heartbeat), timeout=3)
                assert not noise.done()
        finally:
            noise.cancel()
            await asyncio.gather(noise, return_exceptions=True)
            client.remove_container(other, force=True)


async def test_malformed_engine_reply_makes_host_unknown(engine: PrivateEngine, running_app: Path) -> None:
    meddler = Meddler(engine.host)

    def puzzle() -> None:
        raise KeyError("State")

    async with watching(meddler, running_app) as told:
        await told.until(lambda item: states(item) == ["running"])
        meddler.before["events"] = puzzle
        meddler.after["containers"] = puzzle
        assert meddler.stream is not None
        await asyncio.to_thread(meddler.stream.close)
        # The next two sessions end with a malformed reply each, and the third one succeeds.
        lost = await told.until(lambda item: isinstance(item, HostState) and "make sense" in item.engine_problem)
        assert reachable(lost) is False
        await told.until(lambda item: states(item) == ["running"])
        assert (meddler.before, meddler.after) == ({}, {})


async def test_compose_config_is_reread_only_for_changed_files(engine: PrivateEngine, running_app: Path) -> None:
    asked: list[str] = []

    class Counted(DirectoryReader):
        async def ask(
            self,
            method: Callable[Concatenate[Directories, P], T],
            path: str,
            seconds: float,
            /,
            *given: P.args,
            **named: P.kwargs,
        ) -> T:
            asked.append(method.__name__)
            return await super().ask(method, path, seconds, *given, **named)

    file = running_app.parent / "policy.toml"
    write_policy(file, [str(running_app.parent)])
    with closing(Counted(file, installed("docker-compose"), {"DOCKER_HOST": engine.host})) as reader:
        known = Identities(reader)
        apps = [WatchedApp(str(running_app), None)]
        (first,) = await known.current(apps)
        for _ in range(10):
            # Files of the app's own beside the compose file don't count.
            (running_app / "data.log").write_text("x")
            assert await known.current(apps) == [first]
        assert asked.count("read") == 1
        (running_app / "compose.override.yaml").write_text("name: another\n")
        (second,) = await known.current(apps)
        assert second.project is not None
        assert second.project.name == "another"
        (running_app / "compose.override.yaml").unlink()
        (third,) = await known.current(apps)
        assert third == first
        (running_app / "compose.yaml").rename(running_app / "x")
        (fourth,) = await known.current(apps)
        assert fourth.problem_code == "compose_file_missing"
        (running_app / "x").rename(running_app / "compose.yaml")
        assert await known.current(apps) == [first]


@pytest.fixture(scope="module")
def other_engine(engine_folder: Path) -> Iterator[PrivateEngine]:
    """Return an Engine that may be killed."""
    with PrivateEngine(engine_folder / "agent-other") as made:
        ensure_sample_image(made)
        yield made


async def test_engine_outage_is_reported_and_recovery_is_observed(other_engine: PrivateEngine, app: Path) -> None:
    await asyncio.to_thread(compose, other_engine, app, "up", "-d")
    async with watching(Engine(other_engine.host), app) as told:
        await told.until(lambda item: states(item) == ["running"])
        # A restart stops its containers; their restart policy doesn't start them again.
        await asyncio.to_thread(other_engine.restart)
        await told.until(lambda item: reachable(item) is False)
        await told.until(lambda item: states(item) == ["exited"])
        await told.until(lambda item: reachable(item) is True)
        # The app doesn't change during the Engine's outage: it is still sent again.
        await asyncio.to_thread(other_engine.kill)
        lost = await told.until(lambda item: reachable(item) is False)
        assert isinstance(lost, HostState)
        assert other_engine.host in lost.engine_problem or "closed the stream" in lost.engine_problem
        assert lost.running_containers == 0
        await asyncio.to_thread(other_engine.start)
        await told.until(lambda item: states(item) == ["exited"])
        await told.until(lambda item: reachable(item) is True)
    await asyncio.to_thread(compose, other_engine, app, "down")


async def test_operation_end_is_reported_without_final_observation(
    other_engine: PrivateEngine, desk: Desk, tmp_path: Path
) -> None:
    lone = await asyncio.to_thread(LoneAgent(tmp_path / "lone", other_engine, desk).start)
    try:
        async with lone.called() as caller:
            done = await caller.run(UP, lone.app("unseen", SLEEPER))
            assert [c.state for c in done.end.observed.containers] == ["running"]
            await asyncio.to_thread(other_engine.kill)
            try:
                again = await caller.finish(done.operation_id)
            finally:
                await asyncio.to_thread(other_engine.start)
        assert (again.raw, again.end.exit_code) == (done.raw, 0)
        # Absent, not empty: an empty observation would mean that the app is stopped.
        assert not again.end.HasField("observed")
    finally:
        await asyncio.to_thread(lone.process.terminate)
        lone.clear()


async def test_hung_engine_is_reported_without_delaying_host_facts(other_engine: PrivateEngine, app: Path) -> None:
    engine = Engine(other_engine.host)
    with closing(DirectoryReader(app, "", {})) as reader:
        known = Identities(reader)
        watcher = Watcher(Observer(engine), engine, known, nothing_held(app), StateDisk(app))
        assert (await watcher.host_now()).engine_problem == ""
        dockerd = other_engine._dockerd.identity
        dockerd.send(signal.SIGSTOP)
        try:
            async with asyncio.timeout(4.5):
                problem = (await watcher.host_now()).engine_problem
            assert "didn't answer within 3 seconds" in problem
        finally:
            dockerd.send(signal.SIGCONT)


async def test_slow_first_engine_reply_is_awaited(engine: PrivateEngine, running_app: Path) -> None:
    meddler = Meddler(engine.host)
    meddler.before["facts"] = functools.partial(time.sleep, 1)
    async with watching(meddler, running_app) as told:
        # An agent that was just started must not take a host for one without an Engine.
        first = await told.until(lambda _: True, timeout=5)
    assert (reachable(first), states(first)) == (True, ["running"])


async def test_host_without_engine_is_reported_immediately(app: Path) -> None:
    async with watching(Engine(f"unix://{app}/no.sock"), app) as told:
        first = await told.until(lambda _: True, timeout=5)
        assert isinstance(first, Snapshot)
        assert f"{app}/no.sock" in first.host.engine_problem
        # Unknown apps are absent: an empty list would mean stopped.
        assert first.apps == []
