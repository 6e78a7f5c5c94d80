"""Server-sent events: each change immediately, in order, once, and resumable from the last id."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import aiohttp
import pytest
from factories import PATH, Api, World, add_app
from fakes import FakeHost, settle
from moorage_controller.services.events import feed as feeds
from moorage_controller.services.events.feed import ChangeEvent, Feed, StreamOpened
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps, changes, servers
from sse_reader import Event, Listener, listening


async def ready(stream: Listener) -> Event:
    """Return the first event."""
    event = await stream.next()
    assert event is not None
    assert event.name == "ready"
    return event


async def until(stream: Listener, kind: str, **fields: object) -> Event:
    """Return the next event of a kind whose fields are so."""
    while True:
        event = (await stream.until(kind))[-1]
        if {key: event.json.get(key) for key in fields} == fields:
            return event


async def test_event_payload_equals_get_reply(world: World, host: FakeHost, app_id: str) -> None:
    async with listening(world.user, "/api/events") as stream:
        assert (await ready(stream)).json == {"resumed": False}
        operation_id = await world.begin(app_id)
        told = await until(stream, "app", status="running", operationId=None)
        assert told.json == await world.app(app_id)
        host.set_running(PATH, [])
        told = await until(stream, "app", status="stopped")
        assert told.json == await world.app(app_id)
        host.engine_problem = "It burns."
        told = await until(stream, "server", status="offline")
        assert told.json == (await world.user.get(f"/api/servers/{told.json['id']}")).expect(200)
        (await world.admin.delete(f"/api/apps/{app_id}?force=true")).expect(200)
        assert (await until(stream, "app", id=app_id, deleted=True)).json == {"id": app_id, "deleted": True}
    async with listening(world.user, "/api/events", last_id="0") as stream:
        assert (await ready(stream)).json == {"resumed": False}, "nobody knows what was before the first number"
    shown = await world.operation(operation_id)
    assert shown["state"] == "succeeded"


async def test_operation_events_cover_record_to_end(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    async with listening(world.user, "/api/events") as stream:
        await ready(stream)
        operation_id = await world.begin(app_id)
        await until(stream, "operation", id=operation_id, state="running")
        host.let_go()
        told = await until(stream, "operation", id=operation_id, state="succeeded")
    shown = await world.operation(operation_id)
    assert told.json == {key: value for key, value in shown.items() if key != "output"}


async def test_resumed_listener_gets_last_state_of_each_change(world: World, app_id: str) -> None:
    async with listening(world.user, "/api/events") as stream:
        last_id = (await ready(stream)).id
    server_id = (await world.app(app_id))["serverId"]
    other_id = await world.new_app(server_id, name="Untouched", cdPath="/srv/other")
    async with listening(world.user, "/api/events", last_id) as stream:
        assert (await ready(stream)).json == {"resumed": True}
        last_id = (await until(stream, "app", id=other_id)).id
    for _ in range(3):
        await world.begin(app_id)
        await world.begin(app_id, "stop")
    async with listening(world.user, "/api/events", last_id) as stream:
        assert (await ready(stream)).json == {"resumed": True}
        told = await until(stream, "app", id=app_id, status="stopped", operationId=None)
        assert told.json == await world.app(app_id)
        (await world.admin.put(f"/api/apps/{other_id}", {"name": "Touched"})).expect(200)
        await until(stream, "app", id=other_id, name="Touched")


async def test_event_ids_survive_restart_and_unknown_id_is_not_resumed(world: World, app_id: str) -> None:
    async with listening(world.user, "/api/events") as stream:
        last_id = (await ready(stream)).id
    (await world.admin.put(f"/api/apps/{app_id}", {"name": "Renamed"})).expect(200)
    await world.restart()
    async with listening(world.user, "/api/events", last_id) as stream:
        assert (await ready(stream)).json == {"resumed": True}
        assert (await until(stream, "app")).json["name"] == "Renamed"
    for wrong in (str(10**17), "nonsense", "-1", "9" * 40):
        async with listening(world.user, "/api/events", wrong) as stream:
            assert (await ready(stream)).json == {"resumed": False}


async def test_repeated_server_check_emits_no_event(world: World, app_id: str) -> None:
    server_id = (await world.app(app_id))["serverId"]
    async with listening(world.user, "/api/events") as stream:
        await ready(stream)
        for _ in range(3):
            world.clock.advance(60)
            (await world.user.post(f"/api/servers/{server_id}/test")).expect(200)
        (await world.admin.put(f"/api/apps/{app_id}", {"name": "Last"})).expect(200)
        first = await stream.next()
        assert first is not None
        assert (first.name, first.json["name"]) == ("app", "Last")


async def test_event_stream_requires_read_access(world: World) -> None:
    (await world.nobody.get("/api/events")).expect(401)
    token = (await world.user.post("/api/tokens", {"name": "ci", "scopes": ["read"]})).expect(201)["token"]
    async with listening(Api(world.nobody.session, world.nobody.url, token), "/api/events") as stream:
        await ready(stream)


async def test_three_hundred_listeners_receive_all_events_in_same_order(world: World, app_id: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        api = Api(session, world.user.url, world.user.token)

        async def listen() -> list[str]:
            async with listening(api, "/api/events") as stream:
                await ready(stream)
                arrived.release()
                events: list[Event] = []
                while not (events and events[-1].json.get("name") == "n20"):
                    event = await stream.next()
                    assert event is not None
                    events.append(event)
            return [event.data for event in events]

        arrived = asyncio.Semaphore(0)
        listeners = [asyncio.create_task(listen()) for _ in range(300)]
        for _ in listeners:
            await arrived.acquire()
        for n in range(21):
            (await world.admin.put(f"/api/apps/{app_id}", {"name": f"n{n}"})).expect(200)
        heard = await asyncio.gather(*listeners)
    assert all(one == heard[0] for one in heard)
    names = [json.loads(data)["name"] for data in heard[0]]
    assert names == sorted(set(names), key=lambda name: int(name[1:])), "in order, and each once"


async def follow(feed: Feed, after: int | None, count: int) -> list[ChangeEvent]:
    """Return the first events of a listener, after the ready event."""
    found: list[ChangeEvent] = []
    listener = feed.listen(after)
    async with asyncio.timeout(10):
        async for batch in listener:
            found += [news for news in batch if isinstance(news, ChangeEvent)]
            if len(found) >= count:
                break
    await listener.aclose()
    return found


def texts(batch: Sequence[StreamOpened | ChangeEvent]) -> list[str]:
    """Return the content of a batch of events."""
    return [each.text for each in batch if isinstance(each, ChangeEvent)]


async def rename(database: Database, app: apps.App, name: str) -> None:
    """Change an app."""
    async with database.write() as connection:
        await apps.change(connection, app.id, {"name": name})


async def test_lagging_listener_is_served_from_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_MOST_KEPT", 4)
    app = await add_app(database)
    feed = Feed(database, lambda _, resource: resource.app.name if isinstance(resource, apps.AppView) else "")
    await feed.open()
    async with database.read() as connection:
        _, began = await changes.span(connection)
    running = asyncio.create_task(feed.run())
    try:
        slow = feed.listen(None)
        await anext(slow)
        for n in range(12):
            await rename(database, app, f"n{n}")
            await settle()
        assert [news.text for news in await follow(feed, began, 1)] == ["n11"], "many changes of one thing are one"
        assert texts(await anext(slow)) == ["n11"]
        await rename(database, app, "after")
        assert texts(await anext(slow)) == ["after"]
        await slow.aclose()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_change_numbers_follow_commit_order_without_gaps(database: Database) -> None:
    app = await add_app(database)
    async with database.read() as connection:
        _, began = await changes.span(connection)

    async def write(n: int) -> None:
        async with database.write() as connection:
            await apps.change(connection, app.id, {"name": f"n{n}"})
            await servers.change(connection, app.server_id, {"name": f"n{n}"}, quietly=n % 2 == 0)

    async def fail() -> None:
        with suppress(RuntimeError):
            async with database.write() as connection:
                await apps.change(connection, app.id, {"name": "never"})
                raise RuntimeError

    await asyncio.gather(*(write(n) for n in range(10)), *(fail() for _ in range(5)))
    async with database.read() as connection:
        found = await changes.after(connection, began)
        _, last = await changes.span(connection)
    assert last == began + 15
    assert {change.kind.value for change in found} == {"app", "server"}
    async with database.write() as connection:
        await apps.change(connection, uuid4(), {"name": "nobody"})
    async with database.read() as connection:
        assert (await changes.span(connection))[1] == last, "what changed nothing is no change"
