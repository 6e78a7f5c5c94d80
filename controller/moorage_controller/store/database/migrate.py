"""Migration of the database to this release's revision."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import moorage_migrations
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import StartupError
from moorage_controller.store.database.database import Database

log = structlog.get_logger(__name__)


async def migrate(database: Database) -> None:
    """Upgrade to the newest revision, in one transaction. Raises StartupError for a database from a newer release.

    An older SQLite database is copied first, to NAME.before-REVISION beside it. A PostgreSQL database is not: its admin
    makes the dump.
    """
    async with database.migrate() as connection:
        current = await _revision(connection)
        if current == moorage_migrations.head_revision():
            return
        if current is not None and database.sqlite_path is not None:
            # Within the transaction, so that nothing is written between copy and migration.
            await _copy(database.sqlite_path)
        await connection.run_sync(moorage_migrations.upgrade)


async def require_current(database: Database) -> None:
    """Raise StartupError unless the database is at this release's revision."""
    async with database.read() as connection:
        current = await _revision(connection)
    if current != moorage_migrations.head_revision():
        raise unmigrated(current)


def unmigrated(current: str | None) -> StartupError:
    """Return the error for a database at that revision; None means never migrated."""
    found = "was never migrated" if current is None else f"is at revision {current}"
    head = moorage_migrations.head_revision()
    return StartupError(
        "unmigrated_database",
        f"The database {found}, and this release needs {head}: run `moorage-controller migrate` first.",
    )


async def _revision(connection: AsyncConnection) -> str | None:
    current: str | None = await connection.run_sync(moorage_migrations.current_revision)
    if current is not None and not moorage_migrations.known(current):
        raise StartupError(
            "newer_database",
            f"The database is at revision {current}, which this release doesn't know: "
            "install the release that made it, or restore a backup.",
        )
    return current


async def _copy(path: Path) -> None:
    copy = path.with_name(f"{path.name}.before-{moorage_migrations.head_revision()}")
    try:
        await asyncio.to_thread(_copy_now, path, copy)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(
            "no_copy",
            f"The database must be copied to {copy} before it is migrated, and that failed ({error}): make room there.",
        ) from None
    log.info("database_copied", path=str(copy))


def _copy_now(path: Path, copy: Path) -> None:
    part = copy.with_name(f"{copy.name}.part")
    part.unlink(missing_ok=True)
    # SQLite's backup API includes the write-ahead log. The file has mode 0600 from the start.
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
    descriptor = os.open(part, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    part.rename(copy)
