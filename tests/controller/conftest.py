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
    """Parametrise tests of stored data with both databases; SQLITE_ONLY in a file states why SQLite suffices."""
    marked = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "database_kind" in metafunc.fixturenames and "database_kind" not in marked:
        kinds = get_args(Kind)[:1] if hasattr(metafunc.module, "SQLITE_ONLY") else get_args(Kind)
        metafunc.parametrize("database_kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> Kind:
    """Return the kind of the test's database."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="session")
def templates() -> dict[Kind, Settings]:
    """Return the cache of templates, by kind: tests alternate between the databases."""
    return {}


@pytest.fixture(scope="session")
def template(
    database_kind: Kind,
    templates: dict[Kind, Settings],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Return the settings of a migrated database with two users, as a template for copies."""
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
    """Return the factory of copies of the template, each with its data in a folder."""
    loop = asyncio.new_event_loop()
    copies = Copies(template, loop)
    yield copies
    copies.close()
    loop.close()


@pytest.fixture
def settings(copies: Copies, tmp_path: Path) -> Iterator[Settings]:
    """Return the settings of a controller on the test's own migrated database with the two users."""
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
    """Return a running controller, with both users logged in."""
    world = World(settings)
    try:
        yield await world.start()
    finally:
        await world.close()


@pytest.fixture
async def host(world: World) -> FakeHost:
    """Return the only host of the world."""
    return (await world.new_host())[1]


@pytest.fixture
async def app_id(world: World, host: FakeHost) -> str:
    """Return an app on that host."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.new_app(server["id"])


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Return the log from here on, in the program's format: JSON lines, level debug and above."""
    root = standard_logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    logging.configure("debug", stream=stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def steady_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the jitter of retries."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


@pytest.fixture
async def timed_app_id(world: World, host: FakeHost) -> str:
    """Return an app on that host, whose runs last five minutes."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.new_app(server["id"], autoStopTimeout=5)


@pytest.fixture
async def running_app_id(world: World, timed_app_id: str) -> str:
    """Return that app, started."""
    (await world.user.post(f"/api/apps/{timed_app_id}/start")).expect(200)
    await settle()
    return timed_app_id
