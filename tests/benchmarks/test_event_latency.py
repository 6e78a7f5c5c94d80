"""Latency from `docker kill` to the event at a listener, over agent and SSH in turns, in one run."""

import asyncio
import statistics
import time
from contextlib import closing

import aiohttp
import docker
import pytest
from benchmark_figures import make_ssh_app, tell
from factories import Api
from moorage_lab.programs.sshd import PrivateSshd
from running_stack import SLEEPER, Stack
from sse_reader import Listener, listening

_ROUNDS = 100


def _apps(stack: Stack, sshd: PrivateSshd) -> dict[str, str]:
    """Create one app over the agent and one over SSH; return their ids by transport."""
    return {"agent": stack.make_app("over-agent", SLEEPER), "SSH": make_ssh_app(stack, sshd)}


async def _told(stream: Listener, app_id: str, status: str) -> float:
    """Return the time at which a listener receives an app's status."""
    while True:
        event = await stream.next()
        assert event is not None
        moment = time.perf_counter()
        if event.name == "app" and (event.json["id"], event.json["status"]) == (app_id, status):
            return moment


@pytest.mark.timeout(600)
async def test_event_latency_after_container_kill(stack: Stack, sshd: PrivateSshd) -> None:
    apps = await asyncio.to_thread(_apps, stack, sshd)
    took: dict[str, list[float]] = {way: [] for way in apps}
    async with aiohttp.ClientSession() as session:
        api = Api(session, stack.controller.url, stack.api.token)
        async with listening(api, "/api/events") as stream:
            with closing(docker.APIClient(base_url=stack.engine.host, version="auto")) as client:
                for _ in range(_ROUNDS):
                    for way, app_id in apps.items():
                        name = f"over-{way.lower()}-web-1"
                        (await api.post(f"/api/apps/{app_id}/start")).expect(200)
                        await _told(stream, app_id, "running")
                        began = time.perf_counter()
                        killing = asyncio.create_task(asyncio.to_thread(client.kill, name))
                        took[way].append(await _told(stream, app_id, "stopped") - began)
                        await killing
    for way, seconds in took.items():
        *_, last = statistics.quantiles(seconds, n=100)
        figures = f"median {statistics.median(seconds) * 1000:.0f} ms, 99th percentile {last * 1000:.0f} ms"
        tell(f"from docker kill to the event over {way}: {figures}, of {len(seconds)}")
    assert all(len(seconds) == _ROUNDS for seconds in took.values())
