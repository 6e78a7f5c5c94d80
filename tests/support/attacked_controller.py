"""A controller in this process for tests that attack its API: real HTTP, on SQLite, with fake hosts."""

import io
import logging as standard_logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import bcrypt
import structlog
from factories import ADMIN, PASSWORD, USER, World, make_settings, user_row
from moorage_common import logging
from moorage_controller.database import open_database
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.tables import users

_CHEAP, REAL = 4, 12
"""Costs of bcrypt: a test's, and production's."""


@asynccontextmanager
async def attacked(folder: Path, *, cost: int = _CHEAP, **settings: object) -> AsyncIterator[World]:
    """Start a controller with both users logged in; their password hashes have the given bcrypt cost."""
    world = World(make_settings(folder / "data", **settings))
    world.settings.moorage_data_dir.mkdir(parents=True, exist_ok=True)
    made = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost)).decode()
    database = open_database(world.settings, world.clock, clock_decides=True)
    await migrate(database)
    async with database.write() as connection:
        await users.add(connection, user_row(ADMIN, "admin", password_hash=made))
        await users.add(connection, user_row(USER, password_hash=made))
    await database.close()
    with _logs_of_production():
        try:
            yield await world.start()
        finally:
            await world.close()


@contextmanager
def _logs_of_production() -> Iterator[None]:
    """Log like the program: the tests' default logging costs more than the requests."""
    root = standard_logging.getLogger()
    handlers, level = root.handlers, root.level
    logging.configure("info", stream=io.StringIO())
    try:
        yield
    finally:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()
