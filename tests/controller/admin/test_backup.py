"""Backup and restore on SQLite: a consistent snapshot during writes, all or nothing, and secrets stay sealed."""

import asyncio
import gzip
import hashlib
import json
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import moorage_migrations
import pytest
from backups import (
    BACKUPS,
    SECRET,
    Place,
    backed_up_under_writers,
    done,
    fill,
    refused,
    restored_pairs,
)
from factories import ENCRYPTION_KEY, World, audit_row
from fakes import EPOCH
from moorage_controller.services.admin import backup
from moorage_controller.store.database import table_dump as contents
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.database.types import EncryptedText, TextTuple
from moorage_controller.store.schema import metadata, users
from moorage_controller.store.tables import audit
from moorage_lab.programs.processes import installed, plain_environment
from moorage_lab.waiting import eventually
from sqlalchemy import Column, Integer, LargeBinary, String, inspect, select, text


@pytest.fixture
async def source(tmp_path: Path) -> Place:
    """Return a migrated database with rows of all kinds."""
    place = Place(tmp_path / "source")
    place.folder.mkdir()
    database = place.open()
    await migrate(database)
    await fill(database)
    await database.close()
    return place


@pytest.fixture
async def file(source: Place, tmp_path: Path) -> Path:
    """Return a backup of it."""
    path = tmp_path / "backup"
    done(await asyncio.to_thread(source.run, "backup", path))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Place:
    """Return an empty place."""
    return Place(tmp_path / "target")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a disk of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([shutil.which("mount") or "", "-t", "tmpfs", "-o", "size=512k", "none", disk], check=True)
    yield disk
    subprocess.run([shutil.which("umount") or "", disk], check=True)


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_restore_returns_all_rows_with_secrets_still_sealed(source: Place, file: Path, target: Place) -> None:
    header, *rows = lines(file)
    assert header["revision"] == moorage_migrations.head_revision()
    assert not [row for row in rows if SECRET in str(row) or ENCRYPTION_KEY in str(row)]
    assert mode(file) == 0o600
    assert "is whole" in done(await asyncio.to_thread(target.run, "restore", file))
    before = await source.everything()
    assert all(before.values()), "a table without a row shows nothing"
    assert await target.everything() == before
    assert mode(target.folder) == 0o700


async def test_backup_is_consistent_during_concurrent_writes(source: Place, tmp_path: Path) -> None:
    projects, entries = await backed_up_under_writers(source, tmp_path)
    found = [await restored_pairs(tmp_path / str(n), Place(tmp_path / f"target-{n}")) for n in range(BACKUPS)]
    assert {ours - theirs for ours, theirs in found} == {projects - entries}
    assert len(set(found)) > 1, "nobody wrote meanwhile"


async def test_backup_that_is_cancelled_leaves_no_file(source: Place, tmp_path: Path) -> None:
    database = source.open()
    before = names(tmp_path)
    for turns in range(0, 60, 3):
        task = asyncio.create_task(backup.back_up(database, tmp_path / "cancelled"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(tmp_path) == before
    await database.close()


def test_backup_does_not_overwrite_existing_file(source: Place, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    refused(source.run("backup", file), "file_exists")
    refused(source.run("backup", tmp_path), "file_exists")
    assert file.read_bytes() == whole
    refused(source.run("backup", tmp_path / "nowhere" / "file"), "backup_not_written")


def test_backup_on_full_disk_leaves_no_partial_file(source: Place, small_disk: Path) -> None:
    with suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * (1 << 20))
    sentence = refused(source.run("backup", small_disk / "backup"), "backup_not_written")
    assert "No space left on device" in sentence
    assert names(small_disk) == ["filler"]


def test_restore_on_full_disk_writes_nothing(file: Path, small_disk: Path) -> None:
    target = Place(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (436 << 10))
    assert "full" in refused(target.run("restore", file), "restore_failed")
    filler.unlink()
    done(target.run("restore", file))


def test_backup_without_database_is_refused(target: Place, tmp_path: Path) -> None:
    refused(target.run("backup", tmp_path / "backup"), "unmigrated_database")
    assert names(tmp_path) == []


async def test_target_with_data_is_refused_and_left_alone(source: Place, file: Path) -> None:
    before = await source.everything()
    sentence = refused(await asyncio.to_thread(source.run, "restore", file), "target_not_empty")
    assert "set MOORAGE_DATA_DIR" in sentence
    assert await source.everything() == before


async def test_migrated_target_without_rows_counts_as_empty(source: Place, file: Path, target: Place) -> None:
    target.folder.mkdir()
    database = target.open()
    await migrate(database)
    await database.close()
    done(await asyncio.to_thread(target.run, "restore", file))
    assert await target.everything() == await source.everything()


async def test_foreign_tables_are_excluded_from_backup(source: Place, tmp_path: Path, target: Place) -> None:
    database = source.open()
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE theirs (id INTEGER, place POINT)"))
        await connection.execute(text("INSERT INTO theirs (id) VALUES (1)"))
    await database.close()
    file = tmp_path / "file"
    done(await asyncio.to_thread(source.run, "backup", file))
    done(await asyncio.to_thread(target.run, "restore", file))
    assert await target.everything() == await source.everything()


async def test_target_with_foreign_tables_is_refused(file: Path, target: Place) -> None:
    target.folder.mkdir()
    database = target.open()
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
    refused(await asyncio.to_thread(target.run, "restore", file), "target_not_empty")
    async with database.read() as connection:
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == ["theirs"]
    await database.close()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_restore_is_refused_while_a_controller_serves(world: World, file: Path) -> None:
    place = Place(world.settings.moorage_data_dir)
    before = await place.everything()
    refused(await asyncio.to_thread(place.run, "restore", file), "data_dir_in_use")
    assert await place.everything() == before


@pytest.mark.parametrize("kept", [0, 1, 9, 10, 100, 0.3, 0.6, 0.9, -100, -9, -8, -1])
def test_truncated_backup_is_refused_before_any_write(file: Path, target: Place, kept: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    result = target.run("restore", file)
    assert result.exit_code == 1
    assert "(damaged_backup)" in result.output or "(not_a_backup)" in result.output, result.output
    assert not target.folder.exists()


def test_altered_backup_is_refused_before_any_write(file: Path, target: Place) -> None:
    whole = file.read_bytes()
    step = len(whole) // 40
    for position in range(10, len(whole) - 1, step):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        result = target.run("restore", file)
        assert result.exit_code == 1, position
        assert "(damaged_backup)" in result.output or "(not_a_backup)" in result.output, result.output
    plain = gzip.decompress(whole)
    swapped = [
        plain.replace(old, new) for old, new in ((b"admin", b"nimda"), (b'"id"', b'"di"'), (b"secret", b"terces"))
    ]
    for altered in (*swapped, plain + plain, plain + b"\n", plain.replace(b"\n", b"\n\n", 1)):
        assert altered != plain
        file.write_bytes(gzip.compress(altered))
        refused(target.run("restore", file), "damaged_backup")
    assert not target.folder.exists()


def test_file_that_is_no_backup_is_reported(target: Place, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"", b"text", gzip.compress(b""), gzip.compress(b"[]\n"), gzip.compress(b"\0" * 5_000_000)):
        file.write_bytes(content)
        refused(target.run("restore", file), "not_a_backup")
    refused(target.run("restore", tmp_path / "nothing"), "backup_not_read")
    refused(target.run("restore", tmp_path), "backup_not_read")
    assert not target.folder.exists()


@pytest.mark.parametrize("changed", [{"version": 2}, {"revision": "9999"}])
def test_newer_release_backup_is_refused(file: Path, target: Place, changed: dict[str, object]) -> None:
    header, *rows, _ = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    plain = json.dumps(json.loads(header) | changed | {"release": "7.8.9"}).encode() + b"\n" + b"".join(rows)
    end = json.dumps({"sha256": hashlib.sha256(plain).hexdigest()}).encode() + b"\n"
    file.write_bytes(gzip.compress(plain + end))
    assert "7.8.9" in refused(target.run("restore", file), "newer_backup")
    assert not target.folder.exists()


def test_undecryptable_secrets_are_reported_before_any_write(file: Path, target: Place) -> None:
    other = "another-key-0123456789-0123456789-012"
    sentence = refused(target.run("restore", file, ENCRYPTION_KEY=other), "wrong_encryption_key")
    assert "set ENCRYPTION_KEY" in sentence
    assert "set ENCRYPTION_KEY" in refused(target.run("restore", file, ENCRYPTION_KEY=""), "missing_secret")
    assert not target.folder.exists()
    done(target.run("restore", file, ENCRYPTION_KEY=other, ENCRYPTION_KEY_PREVIOUS=ENCRYPTION_KEY))


async def test_older_revision_is_restored_and_brought_up_to_date(tmp_path: Path, target: Place) -> None:
    old = Place(tmp_path / "old")
    old.folder.mkdir()
    database = old.open()
    async with database.write() as connection:
        await connection.run_sync(moorage_migrations.upgrade, None, "0001")
        columns = "id, username, password_hash, role, is_active, created_at, updated_at, tokens_valid_after"
        moment = "'2026-03-04 05:06:07.000000'"
        values = f"'{'a' * 32}', 'anna', 'hash', 'admin', true, {moment}, {moment}, {moment}"
        await connection.execute(text(f"INSERT INTO users ({columns}) VALUES ({values})"))  # noqa: S608 - a test's text
    await database.close()
    file = tmp_path / "file"
    done(await asyncio.to_thread(old.run, "backup", file))
    assert lines(file)[0]["revision"] == "0001"
    done(await asyncio.to_thread(target.run, "restore", file))
    database = target.open()
    async with database.read() as connection:
        assert await connection.run_sync(moorage_migrations.current_revision) == moorage_migrations.head_revision()
        user = (await connection.execute(select(users))).one()
    await database.close()
    assert (str(user.id), user.username, user.created_at) == (
        "aaaaaaaa-" + "-".join(["aaaa"] * 3) + "-" + "a" * 12,
        "anna",
        EPOCH,
    )


async def test_restore_that_is_killed_leaves_an_empty_database(source: Place, tmp_path: Path, target: Place) -> None:
    database = source.open()
    async with database.write() as connection:
        for _ in range(1500):
            await audit.add(connection, replace(audit_row(None, EPOCH), message="x" * 5000))
    await database.close()
    file = tmp_path / "big"
    done(await asyncio.to_thread(source.run, "backup", file))
    await asyncio.to_thread(kill_in_the_middle, target, file)
    database = target.open()
    async with database.read() as connection:
        assert not await connection.run_sync(contents.has_tables)
    await database.close()
    done(await asyncio.to_thread(target.run, "restore", file))
    assert await target.everything() == await source.everything()


def kill_in_the_middle(target: Place, file: Path) -> None:
    argv = [installed("moorage-controller"), "restore", str(file)]
    child = subprocess.Popen(argv, env=plain_environment(**target.environment))
    log = target.folder / "moorage.db-wal"
    eventually(lambda: log.stat().st_size > 1 << 20, timeout=60, interval=0.001, what="rows that are written")
    child.kill()
    assert child.wait() == -signal.SIGKILL


async def test_every_column_type_is_supported_by_backup(database: Database) -> None:
    async with database.read() as connection:
        found = {table.name: table for table in await connection.run_sync(contents.tables, metadata.tables)}
    declared = {
        name: table for name, table in metadata.tables.items() if name not in {"sessions", "controllers", "changes"}
    }
    assert found.keys() == declared.keys()
    for name, table in declared.items():
        assert {c.name: kind(c) for c in found[name].columns} == {c.name: kind(c) for c in table.columns}
        # A sequence of the database would restart after a restore, and collide with restored numbers.
        assert table.autoincrement_column is None


def kind(column: Column[Any]) -> str:
    """Return a column type's name, equal for the declared and the reflected type."""
    alike = {"text": String | EncryptedText | TextTuple, "integer": Integer, "bytes": LargeBinary}
    found = next((name for name, types in alike.items() if isinstance(column.type, types)), None)
    return found or type(column.type).__name__.lower()
