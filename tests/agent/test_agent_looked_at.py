"""`looked_at`, the time of an observation: it covers every container, even where an event is late or lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from lone_agent import compose
from moorage_agent.docker.engine import Engine, EventStream
from moorage_agent.docker.observer import Observer
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.waiting import eventually_async
from running_stack import IMAGE

_SLEEP = "init: true, stop_grace_period: 0s, command: sleep 1000"
_LATE = "looked-at-late-1"
_TWO = f"services:\n  prompt: {{image: '{IMAGE}', {_SLEEP}}}\n  late: {{image: '{IMAGE}', {_SLEEP}}}\n"


class _Silenced:
    """The Engine's stream of events without those of one container."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for event in self._stream:
            if event["Actor"]["Attributes"].get("name") != _LATE:
                yield event

    def close(self) -> None:
        """End it."""
        self._stream.close()


class LateEngine(Engine):
    """An Engine whose events of one container never arrive."""

    __slots__ = ()

    def events(self, since: int) -> EventStream:
        """Open the stream without the late container's events."""
        return _Silenced(super().events(since))


@pytest.fixture
def app(engine: PrivateEngine, sample_image: str, tmp_path: Path) -> Iterator[Path]:
    """Return an app of two services that run."""
    assert sample_image == IMAGE
    directory = tmp_path / "looked-at"
    directory.mkdir()
    (directory / "compose.yaml").write_text(_TWO)
    compose(engine, directory, "up", "-d")
    yield directory
    compose(engine, directory, "down")


@asynccontextmanager
async def _observing(engine: PrivateEngine) -> AsyncIterator[Observer]:
    observer = Observer(LateEngine(engine.host))
    running = asyncio.create_task(observer.run())
    try:
        await eventually_async(lambda: observer.facts, what="the first look")
        yield observer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _states(observer: Observer, directory: Path) -> dict[str, str]:
    seen = (c.state for c in observer.containers.values() if c.directory == str(directory))
    return {state.service: state.state for state in seen}


async def test_observation_includes_earlier_changes_despite_late_events(engine: PrivateEngine, app: Path) -> None:
    async with _observing(engine) as observer:
        assert _states(observer, app) == {"prompt": "running", "late": "running"}
        with closing(engine.client()) as client:
            await asyncio.to_thread(client.containers.get(_LATE).kill)
            before = observer.looked_at
            await asyncio.to_thread(client.containers.get("looked-at-prompt-1").kill)
        await eventually_async(lambda: _states(observer, app)["prompt"] == "exited", what="the event that comes")
        assert observer.looked_at > before
        assert _states(observer, app) == {"prompt": "exited", "late": "exited"}


async def test_container_change_without_event_shows_in_next_observation(engine: PrivateEngine, app: Path) -> None:
    async with _observing(engine) as observer:
        with closing(engine.client()) as client:
            await asyncio.to_thread(client.containers.get(_LATE).remove, force=True)
            await asyncio.to_thread(client.containers.get("looked-at-prompt-1").pause)
            await eventually_async(lambda: _states(observer, app) == {"prompt": "paused"}, what="one, paused")
            await asyncio.to_thread(compose, engine, app, "up", "-d", "late")
            await asyncio.to_thread(client.containers.get("looked-at-prompt-1").unpause)
        whole = {"prompt": "running", "late": "running"}
        await eventually_async(lambda: _states(observer, app) == whole, what="both, running")
        assert _states(observer, app) == whole
