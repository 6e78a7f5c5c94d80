"""A controller in this process, on fake hosts, for each test; and a database of its own for each test of the store."""

import asyncio
import io
import logging as standard_logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from factories import World, add_users, make_settings
from fakes import FakeClock
from moorage_common import logging
from moorage_controller.store.engine import Database, sqlite_url
from moorage_controller.store.migrate import migrate


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a migrated database and two users in it, to be copied."""
    folder = tmp_path_factory.mktemp("template")

    async def fill() -> None:
        database = Database(sqlite_url(folder / "moorage.db"), FakeClock())
        await migrate(database)
        await add_users(database)
        await database.close()

    asyncio.run(fill())
    return folder


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
async def database(tmp_path: Path, template: Path, clock: FakeClock) -> AsyncIterator[Database]:
    """Return a migrated database with the two users."""
    path = tmp_path / "moorage.db"
    path.write_bytes((template / "moorage.db").read_bytes())
    database = Database(sqlite_url(path), clock)
    yield database
    await database.close()


@pytest.fixture
async def world(tmp_path: Path, template: Path) -> AsyncIterator[World]:
    """Return a controller that runs, with both users logged in."""
    world = World(make_settings(tmp_path / "data"), template)
    try:
        yield await world.start()
    finally:
        await world.close()


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
