"""Apps on a hung file system: they don't affect other apps of their host, and they can be stopped."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from host_calls import order, watching
from lone_agent import LoneAgent
from moorage_common.docker.app_identity import DIRECTORY_HANGS
from moorage_controller.hosts.transport import AppObservation, End, HostApp, HostRefusedError, Snapshot, WatchItem
from moorage_lab.hosts.hung_mount import HungMount
from moorage_lab.waiting import eventually_async
from real_transports import Way
from running_stack import SLEEPER

_HUNG = 12


class _Told:
    """The last state of each app from a watch."""

    def __init__(self) -> None:
        self.apps: dict[str, AppObservation] = {}

    async def read(self, items: AsyncGenerator[WatchItem, None]) -> None:
        async for item in items:
            if isinstance(item, Snapshot):
                assert item.host.engine_reachable
                self.apps = {app.cd_path: app for app in item.apps}
            elif isinstance(item, AppObservation):
                self.apps[item.cd_path] = item

    def problem(self, directory: Path) -> str | None:
        app = self.apps.get(str(directory))
        return None if app is None else app.problem_code

    def running(self, directory: Path) -> bool:
        app = self.apps.get(str(directory))
        return app is not None and any(container.alive for container in app.containers)

    async def until(self, right: Callable[[], bool], seconds: float, what: str) -> None:
        await eventually_async(right, timeout=seconds, what=what)


@asynccontextmanager
async def _told(way: Way, *directories: Path) -> AsyncGenerator[_Told, None]:
    told = _Told()
    async with aclosing(watching(way.transport, *map(str, directories))) as items:
        reading = asyncio.create_task(told.read(items))
        try:
            await told.until(lambda: bool(told.apps) or reading.done(), 60, "the first word of the watch")
            yield told
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _kill(way: Way, directory: Path) -> None:
    with closing(docker.APIClient(base_url=way.engine.host, version="auto")) as client:
        for name in way.states(directory):
            client.kill(name)


def _threads(way: Way) -> int:
    return len(list(Path(f"/proc/{way.process}/task").iterdir()))


async def test_apps_on_hung_mount_do_not_affect_others(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_IDENTITIES_SECONDS", "_PING_SECONDS"):
        monkeypatch.setattr(f"moorage_controller.hosts.ssh.watch.{name}", 2.0)
    place = way.apps / f"mount-{uuid4().hex[:8]}"
    place.mkdir()
    hung, neighbour, late = [way.app(SLEEPER, f"{place.name}/{n}") for n in range(_HUNG)], way.app(SLEEPER), way.app("")
    (late / "compose.yaml").write_text(SLEEPER)
    for directory in (*hung[:2], neighbour):
        assert (await way.start(directory)).exit_code == 0
    async with _told(way, *hung, neighbour, late) as told:
        assert {app.problem_code for app in told.apps.values()} == {""}
        before = _threads(way)
        with HungMount(place, way.process):
            _kill(way, neighbour)
            await told.until(lambda: not told.running(neighbour), 10, "a neighbour's death")
            assert await _timed(way.start(late)) < 8
            await told.until(lambda: told.running(late), 5, "a neighbour's start")
            assert (await way.transport.info()).engine_reachable
            assert all(told.running(directory) for directory in hung[:2])
            for directory in hung[:2]:
                began = time.monotonic()
                with pytest.raises(HostRefusedError) as refused:
                    await way.transport.start(order(str(directory)))
                assert time.monotonic() - began < 10
                assert refused.value.code == DIRECTORY_HANGS
                assert str(directory) in refused.value.sentence
            assert await _timed(way.stop(hung[0])) < 10
            assert way.states(hung[0]) == {}
            await told.until(lambda: not told.running(hung[0]), 5, "the stop of an app that hangs")
            assert (await way.transport.observe(HostApp(str(hung[1])))).containers
            await told.until(lambda: {told.problem(d) for d in hung} == {DIRECTORY_HANGS}, 30, "what hangs")
            assert (told.problem(neighbour), told.problem(late)) == ("", "")
            assert await _timed(way.stop(late)) < 10
            assert _threads(way) < before + 10
        await told.until(lambda: {told.problem(d) for d in hung} == {""}, 40, "what answers again")
    assert await _timed(way.stop(hung[1])) < 10


async def _timed(operation: Awaitable[End]) -> float:
    began = time.monotonic()
    assert (await operation).exit_code == 0
    return time.monotonic() - began


async def test_agent_started_with_hung_directory_stops_its_app(by_agent: Way, lone_agent: LoneAgent) -> None:
    place = by_agent.apps / f"mount-{uuid4().hex[:8]}"
    place.mkdir()
    directory = by_agent.app(SLEEPER, f"{place.name}/x")
    assert (await by_agent.start(directory)).exit_code == 0
    with HungMount(place, by_agent.process):
        assert (await by_agent.transport.observe(HostApp(str(directory)))).containers
        began = time.monotonic()
        await asyncio.to_thread(lone_agent.process.restart)
        assert time.monotonic() - began < 10
        assert (await by_agent.transport.observe(HostApp(str(directory)))).containers
        assert await _timed(by_agent.stop(directory)) < 15
        assert by_agent.states(directory) == {}


_PIPES = {
    ".env": SLEEPER,
    "compose.yaml": "",
    "pipe.env": "services: {web: {image: x, env_file: pipe.env}}\n",
    "more.yaml": f"include: [more.yaml]\n{SLEEPER}",
}
"""Files of apps that are named pipes, and what the app's compose file says."""


async def test_apps_made_of_named_pipes_are_refused_without_delay_to_others(way: Way) -> None:
    neighbour, apps = way.app(SLEEPER), []
    for name, compose in _PIPES.items():
        directory = way.app(compose)
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        apps.append(directory)
    async with _told(way, *apps, neighbour) as told:
        await told.until(lambda: {told.problem(d) for d in apps} == {"unreadable_compose_file"}, 20, "what is no file")
        for directory in apps:
            began = time.monotonic()
            with pytest.raises(HostRefusedError) as refused:
                await way.transport.start(order(str(directory)))
            assert refused.value.code == "unreadable_compose_file"
            assert time.monotonic() - began < 5
        assert await _timed(way.start(neighbour)) < 8
        await told.until(lambda: told.running(neighbour), 5, "a neighbour's start")
        _kill(way, neighbour)
        await told.until(lambda: not told.running(neighbour), 10, "a neighbour's death")
