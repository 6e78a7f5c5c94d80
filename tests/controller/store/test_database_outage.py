"""A database outage: callers get an error, and no change on the hosts is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from database_copies import Copies
from factories import PATH, World
from fakes import FakeHost, settle
from moorage_controller.errors import DatabaseUnavailableError
from moorage_controller.store.database.database import Database
from sqlalchemy.ext.asyncio import AsyncConnection

Write = Callable[[Database], AbstractAsyncContextManager[AsyncConnection]]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_outage_returns_503_and_host_changes_are_applied_later(
    world: World, host: FakeHost, app_id: str, copies: Copies
) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 60})).expect(200)
    await asyncio.to_thread(copies.cut_off, world.settings)
    for path in ("/api/projects", f"/api/apps/{app_id}", "/api/audit-logs"):
        (await world.user.get(path)).expect(503, "database_unavailable")
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(503, "database_unavailable")
    assert (await world.nobody.get("/readyz")).expect(503)["problems"] == ["The database doesn't answer."]
    (await world.nobody.get("/healthz")).expect(200)
    host.set_running(PATH, [])
    await world.clock.run(60)
    await asyncio.to_thread(copies.give_back, world.settings)
    (await world.nobody.get("/readyz")).expect(200)
    await world.clock.run(20)
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"]) == ("stopped", None)


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_run_due_during_outage_is_stopped_after_it(
    world: World, host: FakeHost, app_id: str, copies: Copies
) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start", {"timeout": 1})).expect(200)
    await asyncio.to_thread(copies.cut_off, world.settings)
    await world.clock.run(120)
    assert [kind.value for kind, _ in host.commands] == ["up"]
    await asyncio.to_thread(copies.give_back, world.settings)
    await world.clock.run(5)
    assert [kind.value for kind, _ in host.commands] == ["up", "down"]
    assert (await world.app(app_id))["status"] == "stopped"


@pytest.mark.parametrize("holds", [True, False], ids=["committed", "rolled back"])
async def test_operation_with_unconfirmed_commit_is_driven_if_committed(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch, *, holds: bool
) -> None:
    real: Write = Database.write

    @asynccontextmanager
    async def cut(database: Database) -> AsyncIterator[AsyncConnection]:
        async with real(database) as connection:
            yield connection
            if not holds:
                raise DatabaseUnavailableError("cut before the commit")
        raise DatabaseUnavailableError("cut after the commit")

    monkeypatch.setattr(Database, "write", cut)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(503, "database_unavailable")
    monkeypatch.undo()
    await settle()
    await world.clock.run(1)
    app = await world.app(app_id)
    assert (app["status"], app["operationId"]) == ("running" if holds else "stopped", None)
    assert len(host.commands) == int(holds)
