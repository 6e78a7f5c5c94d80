"""Backup and restore on PostgreSQL, and the move between SQLite and PostgreSQL."""

import asyncio
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from backups import BACKUPS, Place, backed_up_under_writers, done, fill, refused, restored_pairs
from factories import audit_row
from fakes import EPOCH
from moorage_controller.store.database import table_dump as contents
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.tables import audit
from moorage_lab.programs.postgres import PrivatePostgres
from moorage_lab.programs.processes import installed, plain_environment
from moorage_lab.waiting import eventually

NewPlace = Callable[[], Place]


@pytest.fixture
def new_place(postgres: PrivatePostgres, tmp_path: Path) -> NewPlace:
    """Return a factory of places with an empty PostgreSQL database."""

    def make() -> Place:
        name = f"backup_{uuid4().hex}"
        return Place(tmp_path / name, postgres.create_database(name))

    return make


@pytest.fixture
async def source(new_place: NewPlace) -> Place:
    """Return a migrated database with rows of all kinds."""
    place = await asyncio.to_thread(new_place)
    database = place.open()
    await migrate(database)
    await fill(database)
    await database.close()
    return place


async def test_all_rows_move_to_sqlite_and_back(source: Place, new_place: NewPlace, tmp_path: Path) -> None:
    before = await source.everything()
    assert all(before.values()), "a table without a row shows nothing"
    here = source
    for number, place in enumerate((Place(tmp_path / "sqlite"), await asyncio.to_thread(new_place))):
        file = tmp_path / str(number)
        done(await asyncio.to_thread(here.run, "backup", file))
        done(await asyncio.to_thread(place.run, "restore", file))
        assert await place.everything() == before
        here = place


async def test_backup_is_consistent_during_concurrent_writes(
    source: Place, new_place: NewPlace, tmp_path: Path
) -> None:
    projects, entries = await backed_up_under_writers(source, tmp_path)
    found = [await restored_pairs(tmp_path / str(n), await asyncio.to_thread(new_place)) for n in range(BACKUPS)]
    assert {ours - theirs for ours, theirs in found} == {projects - entries}
    assert len(set(found)) > 1, "nobody wrote meanwhile"


async def test_target_with_data_is_refused_and_left_alone(source: Place, tmp_path: Path) -> None:
    before = await source.everything()
    done(await asyncio.to_thread(source.run, "backup", tmp_path / "file"))
    sentence = refused(await asyncio.to_thread(source.run, "restore", tmp_path / "file"), "target_not_empty")
    assert "DATABASE_URL to a new database" in sentence
    assert await source.everything() == before


async def test_migrated_target_without_rows_counts_as_empty(source: Place, new_place: NewPlace, tmp_path: Path) -> None:
    target = await asyncio.to_thread(new_place)
    database = target.open()
    await migrate(database)
    await database.close()
    done(await asyncio.to_thread(source.run, "backup", tmp_path / "file"))
    done(await asyncio.to_thread(target.run, "restore", tmp_path / "file"))
    assert await target.everything() == await source.everything()


async def test_restore_that_is_killed_leaves_an_empty_database(
    source: Place, new_place: NewPlace, postgres: PrivatePostgres, tmp_path: Path
) -> None:
    database = source.open()
    async with database.write() as connection:
        for _ in range(1500):
            await audit.add(connection, replace(audit_row(None, EPOCH), message="x" * 5000))
    await database.close()
    file, target = tmp_path / "big", await asyncio.to_thread(new_place)
    done(await asyncio.to_thread(source.run, "backup", file))
    await asyncio.to_thread(kill_in_the_middle, postgres, target, file)
    database = target.open()
    async with database.read() as connection:
        assert not await connection.run_sync(contents.has_tables)
    await database.close()
    done(await asyncio.to_thread(target.run, "restore", file))
    assert await target.everything() == await source.everything()


def kill_in_the_middle(postgres: PrivatePostgres, target: Place, file: Path) -> None:
    argv = [installed("moorage-controller"), "restore", str(file)]
    child = subprocess.Popen(argv, env=plain_environment(**target.environment))
    name = target.url.rpartition("/")[2]
    asked = f"SELECT query FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608 - a name of the test's own

    def inserts() -> bool:
        return "INSERT INTO audit_logs" in postgres.run("psql", "-At", "-d", "postgres", "-c", asked)

    eventually(inserts, timeout=60, interval=0.001, what="rows that are written")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    # The server aborts and rolls back the connection's transaction a moment later.
    eventually(lambda: not postgres.run("psql", "-At", "-d", "postgres", "-c", asked), what="the connection's end")
