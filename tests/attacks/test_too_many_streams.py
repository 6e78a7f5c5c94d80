"""One user or host can't take all streams of a controller; a closed stream frees its slot immediately."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from attacked_controller import attacked
from factories import Api, World
from fakes import FakeHost
from moorage_controller.auth import stream_shares
from moorage_controller.auth.stream_shares import Kind
from moorage_lab.waiting import eventually_async
from sse_reader import listening


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Return a controller, and callers without a limit of connections."""
    async with (
        attacked(tmp_path) as world,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        world.admin, world.user = (Api(session, api.url, api.token) for api in (world.admin, world.user))
        yield world


@pytest.fixture
async def app(world: World) -> tuple[str, FakeHost]:
    """Return an app whose start never ends, and its host."""
    server_id, host = await world.new_host()
    return await world.new_app(server_id), host


async def refused(api: Api, path: str) -> None:
    reply = await api.get(path)
    reply.expect(429, "too_many_streams")
    assert int(reply.headers["Retry-After"]) >= 1


async def fill(api: Api, path: str, count: int, streams: AsyncExitStack) -> None:
    """Open so many streams, and assert that the next one is refused."""
    await asyncio.gather(*(streams.enter_async_context(listening(api, path)) for _ in range(count)))
    await refused(api, path)


async def test_event_streams_per_user_are_limited_and_slots_are_freed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stream_shares.MOST_OF_USER, Kind.EVENTS, 30)
    async with AsyncExitStack() as streams:
        await fill(world.user, "/api/events", 30, streams)
        token = (await world.user.post("/api/tokens", {"name": "ci", "scopes": ["read"]})).expect(201)["token"]
        await refused(Api(world.user.session, world.user.url, token), "/api/events")
        async with listening(world.admin, "/api/events") as stream:
            await stream.until("ready")

    async def let_in() -> bool:
        async with listening(world.user, "/api/events") as stream:
            return bool(await stream.until("ready"))

    await eventually_async(let_in, timeout=3, what="the places of those who hung up")


async def test_output_streams_per_user_and_total_streams_are_limited(
    world: World, app: tuple[str, FakeHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    app_id, host = app
    host.hold()
    output = f"/api/operations/{await world.begin(app_id)}/output"
    async with AsyncExitStack() as streams:
        await fill(world.user, output, stream_shares.MOST_OF_USER[Kind.OUTPUT], streams)
        monkeypatch.setattr(stream_shares, "MOST", stream_shares.MOST_OF_USER[Kind.OUTPUT] + 2)
        await fill(world.admin, "/api/events", 2, streams)
        (await world.admin.get("/api/apps")).expect(200)
    host.let_go()


async def test_followed_logs_are_limited_per_user_and_host(
    world: World, app: tuple[str, FakeHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/api/apps/{app[0]}/logs?follow=true"
    monkeypatch.setattr(stream_shares, "MOST_OF_HOST", 25)
    (await world.admin.post(f"/api/apps/{app[0]}/start")).expect(200)
    async with AsyncExitStack() as streams:
        await fill(world.user, path, stream_shares.MOST_OF_USER[Kind.LOGS], streams)
        await fill(world.admin, path, 5, streams)
        async with listening(world.admin, "/api/events") as stream:
            await stream.until("ready")


async def test_refused_stream_holds_no_slot(world: World) -> None:
    for _ in range(stream_shares.MOST_OF_USER[Kind.LOGS] + 1):
        (await world.user.get("/api/apps/00000000-0000-4000-8000-000000000000/logs?follow=true")).expect(404)
