"""Migrations: up and down, equal to the tables, and a database of another release is refused."""

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import moorage_migrations
import pytest
from factories import add_users, app_row, make_settings, operation_row, project_row, server_row
from fakes import FakeClock, FakeHosts
from moorage_controller.app import Controller, migrate_database
from moorage_controller.database import open_database
from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.schema import metadata
from moorage_controller.store.tables import apps, operations, projects, servers
from sqlalchemy import Connection, inspect, text


@pytest.fixture
def empty(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Return the settings of an empty database."""
    if database_kind == "sqlite":
        return make_settings(tmp_path)
    return make_settings(tmp_path, database_url=request.getfixturevalue("postgres_url"))


def controller(settings: Settings) -> Controller:
    clock = FakeClock()
    return Controller(settings, clock, hosts=lambda *_: FakeHosts(clock))


async def execute(settings: Settings, statement: str) -> None:
    database = open_database(settings, FakeClock(), clock_decides=True)
    async with database.write() as connection:
        await connection.execute(text(statement))
    await database.close()


async def revision(settings: Settings) -> str | None:
    database = open_database(settings, FakeClock(), clock_decides=True)
    async with database.read() as connection:
        found: str | None = await connection.run_sync(moorage_migrations.current_revision)
    await database.close()
    return found


async def downgrade(settings: Settings, to: str) -> None:
    database = open_database(settings, FakeClock(), clock_decides=True)
    async with database.migrate() as connection:
        await connection.run_sync(moorage_migrations.downgrade, to)
    await database.close()


async def test_rows_and_references_survive_every_migration(empty: Settings) -> None:
    """SQLite rebuilds a changed table: no row and no reference may be lost."""
    database = open_database(empty, FakeClock(), clock_decides=True)
    await migrate(database)
    project, server = project_row(), server_row(agent_name="a.agents.moorage")
    app = app_row(project.id, server.id)
    operation = operation_row(app, state="succeeded")
    async with database.write() as connection:
        await projects.add(connection, project)
        await servers.add(connection, server)
        await apps.add(connection, app)
        await operations.add(connection, operation)
    for target in ("-1", "-2"):
        async with database.migrate() as connection:
            await connection.run_sync(moorage_migrations.downgrade, target)
        await migrate(database)
    async with database.read() as connection:
        found = await operations.get(connection, operation.id)
        assert found is not None
        assert (found.app_id, found.server_id) == (app.id, server.id)
        assert [each.id for each in await servers.all_servers(connection)] == [server.id]
        kept = await apps.get(connection, app.id)
        assert kept is not None
        assert kept.project_id == project.id
    await database.close()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_dangling_reference_is_reported_and_nothing_is_changed(empty: Settings) -> None:
    database = open_database(empty, FakeClock(), clock_decides=True)
    await migrate(database)
    with pytest.raises(StartupError, match="a row in apps whose") as caught:
        async with database.migrate() as connection:
            await apps.add(connection, app_row(uuid4(), uuid4()))
    assert caught.value.code == "broken_reference"
    async with database.write() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM apps"))).scalar() == 0
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar() == 1
    await database.close()


def copies(folder: Path) -> list[Path]:
    return list(folder.glob("*.before-*"))


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


async def test_upgrade_downgrade_upgrade_matches_the_tables(empty: Settings) -> None:
    def there_and_back(connection: Connection) -> None:
        moorage_migrations.upgrade(connection, metadata)
        assert tables(connection) == set(metadata.tables)
        assert moorage_migrations.current_revision(connection) == moorage_migrations.head_revision()
        moorage_migrations.downgrade(connection, "base")
        assert tables(connection) == set()
        moorage_migrations.upgrade(connection, metadata)
        moorage_migrations.check(connection, metadata)

    database = open_database(empty, FakeClock(), clock_decides=True)
    async with database.write() as connection:
        await connection.run_sync(there_and_back)
    await database.close()


async def test_migrated_indexes_and_constraints_match_the_tables(empty: Settings) -> None:
    """Alembic's check overlooks what SQLite keeps in the text of CREATE TABLE."""

    def compare(connection: Connection) -> None:
        moorage_migrations.upgrade(connection, metadata)
        migrated = _facts(connection)
        moorage_migrations.downgrade(connection, "base")
        metadata.create_all(connection)
        assert migrated == _facts(connection)

    database = open_database(empty, FakeClock(), clock_decides=True)
    async with database.write() as connection:
        await connection.run_sync(compare)
    await database.close()


def _facts(connection: Connection) -> dict[str, object]:
    inspector = inspect(connection)
    return {
        table: {
            "columns": sorted(
                (c["name"], str(c["type"]), c["nullable"], c["default"] or "") for c in inspector.get_columns(table)
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


async def test_postgresql_columns_use_native_uuid_time_and_json_types(postgres_url: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, database_url=postgres_url)
    await migrate_database(settings)
    database = open_database(settings, FakeClock(), clock_decides=True)
    async with database.read() as connection:
        query = "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        types = {(name, kind) for name, kind in await connection.execute(text(query))}
    await database.close()
    assert {kind for name, kind in types if name.endswith(("_at", "_until"))} == {"timestamp with time zone"}
    assert {kind for name, kind in types if name in {"id", "user_id", "app_id", "run_id", "jti"}} == {"uuid", "integer"}
    assert ("details", "jsonb") in types


async def test_repeated_migration_changes_nothing(empty: Settings) -> None:
    for _ in range(2):
        await migrate_database(empty)
    assert await revision(empty) == moorage_migrations.head_revision()
    assert copies(empty.moorage_data_dir) == []


async def test_concurrent_migrations_run_once(postgres_url: str, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    everybody = [make_settings(folder, database_url=postgres_url) for folder in folders]
    await asyncio.gather(*(migrate_database(settings) for settings in everybody))
    assert await revision(everybody[0]) == moorage_migrations.head_revision()


async def test_newer_database_is_refused_unchanged(empty: Settings) -> None:
    await migrate_database(empty)
    await execute(empty, "UPDATE alembic_version SET version_num = '9999'")
    for refused in (controller(empty).__aenter__, lambda: migrate_database(empty)):
        with pytest.raises(StartupError, match="9999") as caught:
            await refused()
        assert caught.value.code == "newer_database"
    assert await revision(empty) == "9999"


async def test_serving_on_postgresql_refuses_to_migrate_with_advice(postgres_url: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, database_url=postgres_url)
    with pytest.raises(StartupError, match=r"was never migrated.*`moorage-controller migrate`") as caught:
        await controller(settings).__aenter__()
    assert caught.value.code == "unmigrated_database"
    assert await revision(settings) is None
    await migrate_database(settings)
    await downgrade(settings, "0001")
    with pytest.raises(StartupError, match=r"is at revision 0001.*`moorage-controller migrate`"):
        await controller(settings).__aenter__()
    assert await revision(settings) == "0001"
    await migrate_database(settings)
    async with controller(settings) as started:
        assert started.address


async def test_serving_on_sqlite_migrates_and_keeps_a_full_copy(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    await migrate_database(settings)
    beside = open_database(settings, FakeClock(), clock_decides=True)
    await add_users(beside)
    await downgrade(settings, "0001")
    path = tmp_path / "moorage.db"
    # The last writes are still in the write-ahead log: the file alone is no copy.
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN").execute("SELECT * FROM users").fetchone()
        await execute(settings, "UPDATE users SET full_name = 'Anna' WHERE username = 'admin'")
        async with controller(settings) as started:
            assert started.address
    await beside.close()
    assert await revision(settings) == moorage_migrations.head_revision()
    copy = tmp_path / f"moorage.db.before-{moorage_migrations.head_revision()}"
    assert copies(tmp_path) == [copy]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert kept.execute("SELECT full_name FROM users WHERE username = 'admin'").fetchall() == [("Anna",)]


async def test_migration_is_refused_without_room_for_the_copy(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    await migrate_database(settings)
    await downgrade(settings, "0001")
    (tmp_path / f"moorage.db.before-{moorage_migrations.head_revision()}.part").mkdir()
    with pytest.raises(StartupError, match="must be copied") as caught:
        await controller(settings).__aenter__()
    assert caught.value.code == "no_copy"
    assert await revision(settings) == "0001"
