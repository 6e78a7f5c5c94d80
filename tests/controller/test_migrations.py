"""Migrations: there and back, no difference to the tables, and no guess at a newer database."""

from collections.abc import Iterator
from pathlib import Path

import moorage_migrations
import pytest
from factories import make_settings
from fakes import FakeClock
from moorage_controller.app import Controller, migrate_database
from moorage_controller.errors import StartupError
from moorage_controller.store.engine import Database, sqlite_url
from moorage_controller.store.migrate import migrate
from moorage_controller.store.tables import metadata
from sqlalchemy import Connection, create_engine, inspect, text


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """Return a connection to an empty database."""
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_up_down_and_up_again_ends_where_the_tables_say(connection: Connection) -> None:
    moorage_migrations.upgrade(connection, metadata)
    assert tables(connection) == set(metadata.tables)
    assert moorage_migrations.current_revision(connection) == moorage_migrations.head_revision()
    moorage_migrations.downgrade(connection, "base")
    assert tables(connection) == set()
    moorage_migrations.upgrade(connection, metadata)
    moorage_migrations.check(connection, metadata)


def test_each_migration_s_indexes_and_constraints_are_the_tables(connection: Connection) -> None:
    """Alembic's check overlooks what SQLite keeps in the text of CREATE TABLE."""
    moorage_migrations.upgrade(connection, metadata)
    migrated = _facts(connection)
    moorage_migrations.downgrade(connection, "base")
    metadata.create_all(connection)
    assert migrated == _facts(connection)


def _facts(connection: Connection) -> dict[str, object]:
    inspector = inspect(connection)
    return {
        table: {
            "columns": sorted(
                (c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)
            ),
            "indexes": sorted(
                (i["name"] or "", tuple(i["column_names"]), bool(i["unique"])) for i in inspector.get_indexes(table)
            ),
            "foreign": sorted(
                (f["name"] or "", f["referred_table"], f["options"].get("ondelete", ""))
                for f in inspector.get_foreign_keys(table)
            ),
            "checks": sorted((c["name"] or "", str(c["sqltext"])) for c in inspector.get_check_constraints(table)),
            "unique": sorted(
                (u["name"] or "", tuple(u["column_names"])) for u in inspector.get_unique_constraints(table)
            ),
        }
        for table in sorted(metadata.tables)
    }


async def test_migrating_twice_is_migrating_once(tmp_path: Path) -> None:
    for _ in range(2):
        await migrate_database(make_settings(tmp_path))
    database = Database(sqlite_url(tmp_path / "moorage.db"), FakeClock())
    async with database.read() as connection:
        found = await connection.run_sync(moorage_migrations.current_revision)
    await database.close()
    assert found == moorage_migrations.head_revision()


async def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "moorage.db"), FakeClock())
    await migrate(database)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupError, match="9999") as caught:
        async with Controller(make_settings(tmp_path), FakeClock()):
            pass
    assert caught.value.code == "newer_database"
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"
    await database.close()
