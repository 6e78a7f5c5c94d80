"""AUDIT_DAYS: old entries move from the audit log to files without loss."""

import asyncio
import gzip
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fakes import EPOCH
from moorage_controller.services.audit import audit_archive as archives
from moorage_controller.services.audit.audit_archive import AuditArchive
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import audit
from moorage_controller.store.tables.audit import AuditEntry, AuditFilter

DAYS = timedelta(days=30)


async def written(database: Database, days_ago: float) -> AuditEntry:
    """Store an entry."""
    entry = AuditEntry(
        id=uuid4(),
        user_id=None,
        username="ann",
        action="APP_START",
        resource_type="app",
        resource_id=uuid4(),
        resource_name='ünï "x"\n',
        message="Started.",
        details={"a": [1, None]},
        ip_address="10.0.0.1",
        user_agent=None,
        created_at=EPOCH - timedelta(days=days_ago),
    )
    async with database.write() as connection:
        await audit.add(connection, entry)
    return entry


async def left(database: Database) -> set[str]:
    """Return the ids of the stored entries."""
    async with database.read() as connection:
        entries, _ = await audit.page(connection, wanted=AuditFilter(), limit=10_000, offset=0)
    return {str(entry.id) for entry in entries}


def exported(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all files, in order."""
    texts = [gzip.decompress(file.read_bytes()).decode() for file in sorted(folder.glob("*.jsonl.gz"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


async def test_old_entries_move_from_log_to_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_BATCH_SIZE", 2)
    made = [await written(database, days) for days in (400, 50, 40, 30.1, 31, 29.9, 0)]
    before, folder = await left(database), tmp_path / "audit"
    await AuditArchive(database, folder, DAYS).move_old()
    lines = exported(folder)
    old = sorted((entry for entry in made[:5]), key=lambda entry: entry.created_at)
    assert [line["id"] for line in lines] == [str(entry.id) for entry in old]
    assert await left(database) == before - {str(entry.id) for entry in old}
    assert lines[0] == {
        "id": str(old[0].id),
        "user_id": None,
        "username": "ann",
        "action": "APP_START",
        "resource_type": "app",
        "resource_id": str(old[0].resource_id),
        "resource_name": 'ünï "x"\n',
        "message": "Started.",
        "details": {"a": [1, None]},
        "ip_address": "10.0.0.1",
        "user_agent": None,
        "created_at": (EPOCH - timedelta(days=400)).isoformat(),
    }
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    await AuditArchive(database, folder, DAYS).move_old()
    assert list(folder.iterdir()) == [file], "nothing old, no file"


async def test_log_keeps_all_entries_by_default(database: Database, tmp_path: Path) -> None:
    await written(database, 4000)
    before = await left(database)
    await AuditArchive(database, tmp_path / "audit", None).move_old()
    assert await left(database) == before
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("call", ["fsync", "ftruncate"])
async def test_entries_not_written_to_disk_stay_in_log(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(archives, "_BATCH_SIZE", 2)
    for days in (50, 49, 48, 47):
        await written(database, days)
    before, folder = await left(database), tmp_path / "audit"
    syncs = 0

    def full(_: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs > 3:  # the first batch syncs its file and two folders
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    if call == "ftruncate":
        monkeypatch.setattr(os, "ftruncate", lambda *_: full(0))
    await AuditArchive(database, folder, DAYS).move_old()
    kept = await left(database)
    assert len(before) - len(kept) == 2
    monkeypatch.undo()
    await AuditArchive(database, folder, DAYS).move_old()
    assert {line["id"] for line in exported(folder)} | await left(database) == before


async def test_concurrent_controllers_lose_no_entry(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_BATCH_SIZE", 3)
    for n in range(40):
        await written(database, 40 + n)
    before = await left(database)
    folders = [tmp_path / str(n) / "audit" for n in range(3)]
    for folder in folders:
        folder.parent.mkdir()
    await asyncio.gather(*(AuditArchive(database, folder, DAYS).move_old() for folder in folders))
    found = {line["id"] for folder in folders for line in exported(folder)}
    assert found | await left(database) == before
    assert len(found) >= 40
