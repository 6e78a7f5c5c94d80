"""Old entries of the audit log leave the database for files: written and on disk first, and only then deleted."""

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

from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import audit as store
from moorage_controller.store.tables.audit import AuditEntry

log = structlog.get_logger(__name__)

_BATCH_SIZE = 500
"""In each transaction: nobody else is to wait long for his turn to write."""


class AuditArchive:
    """Moves entries older than `keep` into `folder`; with None it leaves all where they are.

    Each call that finds some makes one file of its own, so that several controllers never write into the same. Two at
    the same time, or one that died before it deleted, may write an entry twice; none is deleted that isn't on this
    controller's disk, by this controller's own writing.
    """

    def __init__(self, database: Database, folder: Path, keep: timedelta | None) -> None:
        self._database = database
        self._folder = folder
        self._keep = keep

    async def move_old(self) -> None:
        """Move what is too old by now. Raises DatabaseUnavailableError; then the rest goes another time."""
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
            # Nothing of it is deleted: it stays where it was until the disk takes it.
            log.error("audit_not_exported", file=str(file), error=error.strerror or str(error))  # noqa: TRY400 - it is said
        if moved:
            log.info("audit_exported", file=str(file), entries=moved)

    async def _oldest(self, before: datetime) -> Sequence[AuditEntry]:
        async with self._database.read() as connection:
            return await store.oldest(connection, before, _BATCH_SIZE)


def _append(file: Path, entries: Sequence[AuditEntry]) -> None:
    """Write entries as one member of a gzip file, and have it on disk, the file's name too. Raises OSError."""
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
            # Half a member would make all after it unreadable.
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)
    for folder in (file.parent, file.parent.parent):
        _sync(folder)


def _shown(entry: AuditEntry) -> dict[str, object]:
    """Return an entry by its columns' names; ids as text, the time as ISO 8601 with microseconds."""
    ids = {name: None if value is None else str(value) for name, value in asdict(entry).items() if name.endswith("id")}
    return {**asdict(entry), **ids, "created_at": entry.created_at.isoformat()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
