"""Last logs of a stopped app: stored, bounded, marked as such, and never a delay of the stop."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import pytest
from factories import PATH, World
from fakes import FakeHost, settle
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_controller.services.operations.last_logs import shown
from moorage_controller.store.database.database import Database
from moorage_controller.store.schema import last_logs
from moorage_controller.store.tables import last_logs as store
from moorage_controller.store.tables.last_logs import ServiceLog
from sqlalchemy import func, select
from sse_reader import listening


@pytest.fixture
async def app_id(world: World, host: FakeHost) -> str:
    """Return a running app with log lines."""
    host.app(PATH).says = ("one", "two")
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    app_id = await world.new_app(server["id"], autoStopTimeout=5)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    return app_id


@asynccontextmanager
async def closing_database(world: World) -> AsyncIterator[Database]:
    """Open a second connection to the controller's database."""
    database = world.database()
    try:
        yield database
    finally:
        await database.close()


async def logs(world: World, app_id: str, query: str = "") -> list[str]:
    """Return the lines of an app's logs."""
    reply = await world.user.get(f"/api/apps/{app_id}/logs{query}")
    assert reply.status == 200, reply.text
    return reply.text.splitlines()


async def test_stopped_app_shows_last_logs_with_notice(world: World, host: FakeHost, app_id: str) -> None:
    time = host.app(PATH).logs[1].time
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    remark, *lines = await logs(world, app_id)
    assert remark.startswith("[The app is stopped. Its last lines, up to 64 KiB a service, from before its stop at 20")
    assert lines == ["shop-web-1 | one", "shop-web-1 | two", "shop-db-1 | one", "shop-db-1 | two"]
    assert (await logs(world, app_id, "?service=db&tail=1"))[1:] == ["shop-db-1 | two"]
    assert (await logs(world, app_id, f"?since={time}"))[1:] == lines[2:]
    assert (await logs(world, app_id, "?service=web&tail=1&timestamps=1"))[1:] == [f"shop-web-1 | {time} two"]
    assert await logs(world, app_id, "?tail=0") == []
    (await world.user.get(f"/api/apps/{app_id}/logs?service=nobody")).expect(404, "service_not_found")
    host.reachable = False
    assert (await logs(world, app_id))[1:] == lines
    host.reachable = True
    await world.clock.run(30)
    host.app(PATH).says = ("again",)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    assert await logs(world, app_id) == ["shop-web-1 | again", "shop-db-1 | again"]
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    assert (await logs(world, app_id))[1:] == ["shop-web-1 | again", "shop-db-1 | again"]


async def test_logs_written_during_auto_stop_are_kept(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    await world.clock.run(5 * 60 + 1)
    assert (await world.app(app_id))["status"] == "stopping"
    host.write(PATH, "web", "bye")
    await settle()
    host.let_go()
    await world.clock.run(5)
    assert (await world.app(app_id))["status"] == "stopped"
    assert (await logs(world, app_id, "?service=web"))[1:] == [f"shop-web-1 | {text}" for text in ("one", "two", "bye")]


async def test_follower_of_stopped_app_gets_last_logs_first(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    async with listening(world.user, f"/api/apps/{app_id}/logs?follow=1&service=web") as stream:
        events = await stream.rest()
    assert [event.data for event in events][1:] == ["shop-web-1 | one", "shop-web-1 | two"]
    assert not events[0].id
    assert host.app(PATH).logs == []


async def test_last_logs_are_deleted_with_app_and_after_retention(world: World, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    async with closing_database(world) as database:
        async with database.read() as connection:
            kept = await store.of_stopped(connection, UUID(app_id))
        assert {each.service for each in kept} == {"web", "db"}
        async with database.write() as connection:
            await store.remove_old(connection, kept[0].stopped_at)
            assert len(await store.of_stopped(connection, UUID(app_id))) == 2
            await store.remove_old(connection, kept[0].stopped_at + timedelta(seconds=1))
        assert await logs(world, app_id) == []
        for verb in ("start", "stop"):
            (await world.user.post(f"/api/apps/{app_id}/{verb}")).expect(200)
        assert len(await logs(world, app_id)) == 5
        (await world.admin.delete(f"/api/apps/{app_id}")).expect(200)
        async with database.read() as connection:
            assert (await connection.execute(select(func.count()).select_from(last_logs))).scalar_one() == 0


async def test_last_logs_are_bounded_per_service(world: World, host: FakeHost, app_id: str) -> None:
    for n in range(40):
        host.write(PATH, "web", f"{n} {'x' * 10_000}")
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    lines = [line.split()[2] for line in (await logs(world, app_id, "?service=web"))[1:]]
    assert lines == [str(n) for n in range(34, 40)], "the newest"
    assert len(await logs(world, app_id, "?service=db")) == 3


async def test_stop_succeeds_when_logs_are_unavailable(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("whatever")

    monkeypatch.setattr(host, "read_logs", broken)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    assert (await world.app(app_id))["status"] == "stopped"


async def test_stop_waits_a_second_for_logs_that_do_not_come(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(*_: object) -> AsyncGenerator[list[LogLine], None]:
        yield [LogLine("2026-03-04T05:06:07.000000001Z", "shop-web-1", "web", "one")]
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3)

    monkeypatch.setattr(host, "read_logs", hanging)
    host.hold()
    stop = (await world.user.post(f"/api/apps/{app_id}/stop", Prefer="respond-async")).expect(202)
    await settle()
    assert UUID(stop["id"]) not in host.journal
    begun = time.monotonic()
    await world.clock.run(1)
    await settle()
    assert UUID(stop["id"]) in host.journal
    assert time.monotonic() - begun < 1, "nor does it wait until reading them has ended"
    monkeypatch.undo()
    host.let_go()
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    assert (await logs(world, app_id))[1:] == ["shop-web-1 | one"]


def test_each_container_keeps_its_own_last_lines(world: World) -> None:
    now = world.clock.now()
    lines = [[f"2026-01-01T00:00:0{n}Z", f"web-{n % 2}", str(n)] for n in range(6)]
    found = shown([ServiceLog("web", now, json.dumps(lines))], LogsWanted(tail=2))
    assert [(line.container, line.text) for line in found[1:]] == [(f"web-{n % 2}", str(n)) for n in range(2, 6)]
    assert found[0] == LogLine("", "", "", found[0].text)
