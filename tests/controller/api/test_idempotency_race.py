"""Idempotency-Key under a race: the same request at two controllers on one PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from factories import ADMIN, PASSWORD, PATH, Api, make_settings
from fakes import FakeClock, FakeHosts
from moorage_common.clock import SystemClock
from moorage_controller.app import Controller, migrate_database
from moorage_controller.store.database.database import Database, postgresql_url
from sqlalchemy import text

Pair = tuple[Api, Api]
AT_ONCE = 8


@pytest.fixture
async def pair(postgres_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Return two controllers on one database, an admin logged in to both."""
    hosts = FakeHosts(FakeClock())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(hosts.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        callers = []
        for name in ("one", "two"):
            settings = make_settings(tmp_path / name, database_url=postgres_url)
            await migrate_database(settings)
            controller = await stack.enter_async_context(Controller(settings, SystemClock(), hosts=lambda *_: hosts))
            callers.append(Api(session, f"http://{controller.address}", None))
        login = (await callers[0].post("/api/auth/login", {"username": ADMIN, "password": PASSWORD})).expect(200)
        for caller in callers:
            caller.token = login["token"]
        yield callers[0], callers[1]


async def bodies(caller: Api) -> dict[str, dict[str, Any]]:
    project = (await caller.post("/api/projects", {"name": "Base"})).expect(201)["id"]
    server = (await caller.post("/api/servers", {"name": "Base", "address": "192.0.2.1"})).expect(201)["id"]
    return {
        "/api/servers": {"name": "web 1", "address": "192.0.2.1"},
        "/api/projects": {"name": "Shop"},
        "/api/apps": {"name": "QMS", "projectId": project, "serverId": server, "cdPath": PATH},
        "/api/users": {"username": "anna", "password": "a very secret word"},
    }


async def at_once(pair: Pair, path: str, body: object, *keys: str) -> list[Any]:
    calls = [caller.post(path, body, Idempotency_Key=key) for _ in range(AT_ONCE) for key in keys for caller in pair]
    replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {201}, {reply.text for reply in replies}
    return list({reply.text: reply.json for reply in replies}.values())


async def test_concurrent_request_at_two_controllers_creates_once(pair: Pair) -> None:
    for path, body in (await bodies(pair[0])).items():
        before = {one["id"] for one in (await pair[0].get(path)).expect(200)}
        (made,) = await at_once(pair, path, body, "k" + path)
        assert {one["id"] for one in (await pair[1].get(path)).expect(200)} - before == {made["id"]}


async def test_expired_keys_are_replaced_by_concurrent_requests(pair: Pair, postgres_url: str) -> None:
    keys = ("a", "b", "c")
    before = {made["id"] for made in await at_once(pair, "/api/projects", {"name": "Shop"}, *keys)}
    database = Database(postgresql_url(postgres_url), SystemClock())
    try:
        async with database.write() as connection:
            await connection.execute(text("UPDATE idempotency_keys SET created_at = created_at - interval '24 hours'"))
        after = {made["id"] for made in await at_once(pair, "/api/projects", {"name": "Other"}, *keys)}
        async with database.read() as connection:
            left = (await connection.execute(text("SELECT key FROM idempotency_keys ORDER BY key"))).scalars().all()
    finally:
        await database.close()
    assert (len(before), len(after), len(before | after)) == (3, 3, 6)
    assert left == list(keys)
