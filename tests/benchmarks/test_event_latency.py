"""How long it takes from `docker kill` to the event that a listener reads, over agent and SSH in turns, in one run."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aiohttp
import docker
import pytest
from factories import Api
from moorage_lab.engine import PrivateEngine
from moorage_lab.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from rigs import remove_ssh_apps
from sse import Listener, listening
from stack import SLEEPER, Stack

_ROUNDS = 100


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`."""
    assert sample_image
    with PrivateSshd(short_folder / "ssh", engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)


def _apps(stack: Stack, sshd: PrivateSshd) -> dict[str, str]:
    """Make one app over the agent and one over SSH; return their ids by the way."""
    body = {"name": "bare", "address": "127.0.0.1", "sshUser": "op", "sshPort": sshd.port}
    body["sshPrivateKey"] = sshd.key.read_text()
    server_id = stack.api.post("/api/servers", body).expect(201)["id"]
    path = f"/api/servers/{server_id}"
    eventually(lambda: stack.api.get(path).expect(200)["status"] == "online", timeout=30, what="the server online")
    over_ssh = stack.make_app("over-ssh", SLEEPER, sshd.apps / "over-ssh", serverId=server_id)
    return {"agent": stack.make_app("over-agent", SLEEPER), "SSH": over_ssh}


async def _told(stream: Listener, app_id: str, status: str) -> float:
    """Return the moment at which a listener reads that an app has a status."""
    while True:
        event = await stream.next()
        assert event is not None
        moment = time.perf_counter()
        if event.name == "app" and (event.json["id"], event.json["status"]) == (app_id, status):
            return moment


@pytest.mark.timeout(600)
async def test_from_a_kill_to_the_event(stack: Stack, sshd: PrivateSshd) -> None:
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
        print(f"\nfrom docker kill to the event over {way}: {figures}, of {len(seconds)}")  # noqa: T201 - its result
    assert all(len(seconds) == _ROUNDS for seconds in took.values())
