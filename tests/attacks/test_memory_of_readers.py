"""Memory per reader is bounded in bytes: lists for any query, and events of any length."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attacked_controller import attacked
from factories import World, add_app, app_row, make_settings, project_row, server_row
from fakes import FakeClock, settle
from moorage_controller.api.admin.events import show
from moorage_controller.api.http import conditional
from moorage_controller.api.http import http_edge as surface
from moorage_controller.api.http.conditional import Conditional
from moorage_controller.database import open_database
from moorage_controller.services.events import feed as feeds
from moorage_controller.services.events.feed import ChangeEvent, Feed
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.database.version import DatabaseVersion
from moorage_controller.store.tables import apps, projects, servers
from sse_reader import listening

MIB = 1024 * 1024
QUERIES = 60


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[Conditional]:
    """Return the list caches of the controllers that are started from here on."""
    made: list[Conditional] = []

    class Seen(Conditional):
        def __init__(self, revisions: DatabaseVersion) -> None:
            super().__init__(revisions)
            made.append(self)

    monkeypatch.setattr(surface, "Conditional", Seen)
    return made


@pytest.fixture
async def world(tmp_path: Path, caches: list[Conditional]) -> AsyncIterator[World]:
    """Return a controller."""
    assert caches == []
    async with attacked(tmp_path) as made:
        yield made


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """Return a database without a controller."""
    database = open_database(make_settings(tmp_path), FakeClock(), clock_decides=True)
    await migrate(database)
    yield database
    await database.close()


def kept(cache: Conditional) -> int:
    """Return the bytes that a list cache really refers to."""
    bodies = cache._bodies
    assert bodies.size == sum(map(len, bodies._bodies.values()))
    return bodies.size + sum(len(path) for _, path in cache._kept)


async def test_list_cache_is_bounded_for_many_users_and_queries(
    world: World, caches: list[Conditional], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache,) = caches
    monkeypatch.setattr(conditional, "_MOST_BYTES", MIB)
    monkeypatch.setattr(conditional, "_LARGEST", MIB // 8)
    database = world.database()
    project, server = project_row(), server_row()
    async with database.write() as connection:
        await projects.add(connection, project)
        await servers.add(connection, server)
        for n in range(300):
            await apps.add(connection, app_row(project.id, server.id, cd_path=f"/srv/{n}", last_error="x" * 500))
    await database.close()
    for n in range(QUERIES):
        await world.admin.get(f"/api/apps?limit={n + 1}")
        await world.user.get(f"/api/apps?limit={n + 1}&x={'y' * 4000}")
    assert 0 < kept(cache) <= MIB
    # Equal lists are stored once.
    before = kept(cache)
    for n in range(QUERIES):
        await world.user.get(f"/api/apps?limit=1&x={n}")
    assert kept(cache) - before < 10_000
    whole = await world.user.get("/api/apps")
    assert len(whole.text) > MIB // 8, "too large to be kept"
    assert len((await world.user.get("/api/apps")).expect(200)) == 300
    etag = (await world.user.get("/api/apps?limit=2")).headers["ETag"]
    assert (await world.admin.get("/api/apps?limit=2", If_None_Match=etag)).status == 304


async def test_oversized_event_carries_only_the_id(world: World) -> None:
    database = world.database()
    app = await add_app(database)
    async with listening(world.user, "/api/events") as stream:
        await stream.until("ready")
        async with database.write() as connection:
            await apps.change(connection, app.id, {"last_error": "x" * (4 * MIB)})
        (await world.admin.post("/api/projects", {"name": "stirs the feed"})).expect(201)
        told = (await stream.until("app"))[-1]
    assert told.json == {"id": str(app.id), "tooLarge": True}
    await database.close()


async def test_event_buffer_is_bounded_and_lagging_listener_misses_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_MOST_BYTES", MIB)
    monkeypatch.setattr(feeds, "_MOST_READ", MIB // 8)
    project, server = project_row(), server_row()
    rows = [app_row(project.id, server.id, cd_path=f"/srv/{n}") for n in range(60)]
    feed = Feed(database, show)
    await feed.open()
    running = asyncio.create_task(feed.run())
    slow = feed.listen(None)
    await anext(slow)
    async with database.write() as connection:
        await projects.add(connection, project)
        await servers.add(connection, server)
        for row in rows:
            await apps.add(connection, row)
    for row in rows:
        async with database.write() as connection:
            await apps.change(connection, row.id, {"last_error": "ж" * 30_000})
    await settle()
    held = sum(feeds._size(news) for news in feed._news)
    assert held == feed._size <= MIB
    seen: dict[str, str] = {}
    async with asyncio.timeout(20):
        async for batch in slow:
            texts = [news for news in batch if isinstance(news, ChangeEvent)]
            assert sum(map(feeds._size, texts)) < 4 * MIB, "of one reader"
            seen |= {found["id"]: found.get("lastError") or "" for found in (json.loads(n.text) for n in texts)}
            if all(len(seen.get(str(row.id), "")) == 30_000 for row in rows):
                break
    await slow.aclose()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
