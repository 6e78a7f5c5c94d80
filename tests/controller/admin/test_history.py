"""Retention: old finished operations are deleted, operations in flight never."""

from datetime import timedelta

import pytest
from factories import PATH, Api, World, add_app, add_operation, app_row
from fakes import EPOCH, FakeHost
from moorage_controller.services.admin import history as histories
from moorage_controller.services.admin.history import History, Keeps
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps, changes, operations, output
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.output import Piece

KEEPS = Keeps(operations=timedelta(days=90), most_operations=5, output=timedelta(days=7))


async def ended(database: Database, app: App, days_ago: float) -> Operation:
    """Store an operation with output that ended `days_ago` days ago."""
    moment = EPOCH - timedelta(days=days_ago)
    made = await add_operation(database, app, state="succeeded", created_at=moment, finished_at=moment)
    await said(database, made)
    return made


async def said(database: Database, operation: Operation) -> None:
    """Store an operation's output in two pieces."""
    async with database.write() as connection:
        await output.append(connection, operation.id, Piece(0, b"one\n"))
        await output.append(connection, operation.id, Piece(4, b"two\n"))


async def left(database: Database) -> dict[Operation, bytes]:
    """Return the stored operations with their output."""
    async with database.read() as connection:
        found, _ = await operations.search(connection, app_id=None, server_id=None, state=None, limit=1000)
        return {each: await output.tail(connection, each.id, 100) for each in found}


async def test_operations_expire_after_90_days_and_output_after_7(database: Database) -> None:
    app = await add_app(database)
    made = {days: await ended(database, app, days) for days in (0, 6.9, 7.1, 89.9, 90.1, 400)}
    await History(database, KEEPS).forget_old()
    whole = b"one\ntwo\n"
    assert await left(database) == {made[0]: whole, made[6.9]: whole, made[7.1]: b"", made[89.9]: b""}


async def test_newest_operations_are_kept_beyond_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_BATCH_SIZE", 2)
    app = await add_app(database)
    made = [await ended(database, app, n / 100) for n in range(12)]
    await History(database, KEEPS).forget_old()
    assert (await left(database)).keys() == set(made[:5])


async def test_operation_in_flight_is_kept_at_any_age(database: Database) -> None:
    app = await add_app(database)
    old = EPOCH - timedelta(days=1000)
    at_work = await add_operation(database, app, state="running", created_at=old, started_at=old)
    await said(database, at_work)
    for n in range(8):
        await ended(database, app, n / 100)
    await History(database, KEEPS).forget_old()
    found = await left(database)
    assert found[at_work] == b"one\ntwo\n"
    assert len(found) == 1 + 5


async def test_old_changes_are_deleted_except_newest(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_CHANGES", 3)
    app = await add_app(database)
    for n in range(10):
        async with database.write() as connection:
            await apps.change(connection, app.id, {"name": f"n{n}"})
    async with database.read() as connection:
        before = await changes.span(connection)
    await History(database, KEEPS).forget_old()
    async with database.read() as connection:
        first, last = await changes.span(connection)
    assert (first, last) == (before[1] - 2, before[1])
    async with database.write() as connection:
        await apps.add(connection, app_row(app.project_id, app.server_id))
    async with database.read() as connection:
        assert (await changes.span(connection))[1] == last + 1


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings that keep output for a day."""
    return settings.model_copy(update={"operation_output_days": 1})


async def test_controller_deletes_history_periodically(world: World) -> None:
    server_id, host = await world.new_host()
    assert isinstance(host, FakeHost)
    operation_id = await world.begin(await world.new_app(server_id, autoStopTimeout=43_200))
    assert PATH in (await world.operation(operation_id))["output"]
    made = (await world.user.post("/api/tokens", {"name": "outlives a login", "scopes": ["read"]})).expect(201)
    world.clock.advance(25 * 3600)
    await world.clock.run(1)
    later = Api(world.nobody.session, world.nobody.url, made["token"])
    shown = (await later.get(f"/api/operations/{operation_id}")).expect(200)
    assert (shown["state"], shown["output"]) == ("succeeded", "")
