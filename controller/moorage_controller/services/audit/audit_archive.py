"""Audit archive: move old audit entries from the database to files, synced to disk before they are deleted."""

import asyncio
import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import structlog
from moorage_common.files import sync_folder

from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import audit as store
from moorage_controller.store.tables.audit import AuditEntry

log = structlog.get_logger(__name__)

_BATCH_SIZE = 500
"""Rows per transaction; keeps write locks short."""


class AuditArchive:
    """Moves entries older than `keep` into `folder`; with None it moves nothing.

    Each call that finds entries creates a file of its own, so that several controllers never write to the same file.
    Concurrent controllers, or one that died before the deletion, may write an entry twice. A controller deletes only
    entries that it has written to its own disk.
    """

    def __init__(self, database: Database, folder: Path, keep: timedelta | None) -> None:
        self._database = database
        self._folder = folder
        self._keep = keep

    async def move_old(self) -> None:
        """Move entries that are too old. Raises DatabaseUnavailableError; the rest is moved by a later call."""
        if self._keep is None:
            return
        async with self._database.read() as connection:
            now = await self._database.now(connection)
        file, moved = self._folder / f"audit-{now:%Y%m%dT%H%M%SZ}-{uuid4().hex[:12]}.jsonl.gz", 0
        try:
            while entries := await self._oldest(now - self._keep):
                await asyncio.to_thread(_append, file, entries)
                async with self._database.write() as connection:
                    await store.remove(connection, [entry.id for entry in entries])
                moved += len(entries)
        except OSError as error:
            # These entries are not deleted: they stay in the database until they can be written.
            log.error("audit_not_exported", file=str(file), error=error.strerror or str(error))  # noqa: TRY400 - no traceback
        if moved:
            log.info("audit_exported", file=str(file), entries=moved)

    async def _oldest(self, before: datetime) -> Sequence[AuditEntry]:
        async with self._database.read() as connection:
            return await store.oldest(connection, before, _BATCH_SIZE)


def _append(file: Path, entries: Sequence[AuditEntry]) -> None:
    """Append entries as one gzip member, and sync file and directory entry to disk. Raises OSError."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    text = "".join(f"{json.dumps(_shown(entry), ensure_ascii=False)}\n" for entry in entries)
    member = gzip.compress(text.encode(errors="replace"))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        length = os.fstat(descriptor).st_size
        try:
            with os.fdopen(os.dup(descriptor), "wb") as writing:
                writing.write(member)
            os.fsync(descriptor)
        except OSError:
            # A partial member would make everything after it unreadable.
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)
    for folder in (file.parent, file.parent.parent):
        sync_folder(folder)


def _shown(entry: AuditEntry) -> dict[str, object]:
    """Return an entry as a mapping by column name; IDs as text, the time as ISO 8601 with microseconds."""
    ids = {name: None if value is None else str(value) for name, value in asdict(entry).items() if name.endswith("id")}
    return {**asdict(entry), **ids, "created_at": entry.created_at.isoformat()}
