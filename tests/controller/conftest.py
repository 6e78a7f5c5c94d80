"""Fixtures for the controller's tests: an in-process controller on fake hosts, and a database per store test.

Each such test runs twice: on SQLite, and on a real PostgreSQL.
"""

import asyncio
import io
import logging as standard_logging
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest
import structlog
from database_copies import Copies
from factories import World, add_users, make_settings
from fakes import FakeClock, FakeHost, settle
from moorage_common import logging
from moorage_controller.database import open_database
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.migrate import migrate
from moorage_lab.programs.postgres import PrivatePostgres

Kind = Literal["sqlite", "postgresql"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what stores anything once on either database; a file says with SQLITE_ONLY why one is enough for it."""
    marked = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "database_kind" in metafunc.fixturenames and "database_kind" not in marked:
        kinds = get_args(Kind)[:1] if hasattr(metafunc.module, "SQLITE_ONLY") else get_args(Kind)
        metafunc.parametrize("database_kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> Kind:
    """Return which database a test is on."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="session")
def templates() -> dict[Kind, Settings]:
    """Return where templates are kept: tests go to and fro between the databases."""
    return {}


@pytest.fixture(scope="session")
def template(
    database_kind: Kind,
    templates: dict[Kind, Settings],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Return the settings of a migrated database with two users in it, to be copied."""
    if database_kind in templates:
        return templates[database_kind]
    folder = tmp_path_factory.mktemp("template")
    if database_kind == "postgresql":
        server: PrivatePostgres = request.getfixturevalue("postgres")
        settings = make_settings(folder, database_url=server.create_database("template"))
    else:
        settings = make_settings(folder)

    async def fill() -> None:
        database = open_database(settings, FakeClock(), clock_decides=True)
        await migrate(database)
        await add_users(database)
        await database.close()

    asyncio.run(fill())
    templates[database_kind] = settings
    return settings


@pytest.fixture(scope="session")
def copies(template: Settings) -> Iterator[Copies]:
    """Return what makes the settings of a copy of the template, with its data in a folder."""
    loop = asyncio.new_event_loop()
    copies = Copies(template, loop)
    yield copies
    copies.close()
    loop.close()


@pytest.fixture
def settings(copies: Copies, tmp_path: Path) -> Iterator[Settings]:
    """Return the settings of a controller on a migrated database with the two users, which is the test's own."""
    settings = copies.make(tmp_path / "data")
    yield settings
    copies.drop(settings)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
async def database(settings: Settings, clock: FakeClock) -> AsyncIterator[Database]:
    """Return a migrated database with the two users."""
    database = open_database(settings, clock, clock_decides=True)
    yield database
    await database.close()


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    """Return a controller that runs, with both users logged in."""
    world = World(settings)
    try:
        yield await world.start()
    finally:
        await world.close()


@pytest.fixture
async def host(world: World) -> FakeHost:
    """Return the one host that a world has."""
    return (await world.new_host())[1]


@pytest.fixture
async def app_id(world: World, host: FakeHost) -> str:
    """Return an app on that host."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.new_app(server["id"])


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Return what is logged from here on, as the program logs it: JSON lines, debug and up."""
    root = standard_logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    logging.configure("debug", stream=stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def steady_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have retries come when they are said to."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


@pytest.fixture
async def timed_app_id(world: World, host: FakeHost) -> str:
    """Return an app on that host, whose runs last five minutes."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.new_app(server["id"], autoStopTimeout=5)


@pytest.fixture
async def running_app_id(world: World, timed_app_id: str) -> str:
    """Return that app, which runs from now on."""
    (await world.user.post(f"/api/apps/{timed_app_id}/start")).expect(200)
    await settle()
    return timed_app_id
