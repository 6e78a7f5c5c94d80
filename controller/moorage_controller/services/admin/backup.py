"""Backup of the database into one file, and its restore into SQLite or PostgreSQL, regardless of the source."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import moorage_migrations
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from moorage_controller.errors import DatabaseUnavailableError, StartupError
from moorage_controller.services.admin.backup_file import BackupReader, BackupWriter, Header, Outline, newer_backup
from moorage_controller.store.database import table_dump as contents
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.database.sqlite import run_uncancelled
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.schema import metadata


async def back_up(database: Database, path: Path) -> tuple[Header, int]:
    """Write a consistent snapshot of the database to a new file; return its header and its size in bytes.

    Other readers and writers continue. Raises StartupError; then there is no file.
    """
    async with database.read() as connection:
        now = await database.now(connection)
        header, tables = await connection.run_sync(_outline, now)
        # A cancellation takes effect after the current step, so no thread writes to the file when it is removed.
        with BackupWriter(path) as writer:
            await run_uncancelled(asyncio.to_thread(writer.begin, header))
            for table in tables:
                async for rows in contents.rows(connection, table):
                    await run_uncancelled(asyncio.to_thread(writer.add, rows))
            return header, await run_uncancelled(asyncio.to_thread(writer.finish))


def _outline(connection: Connection, now: datetime) -> tuple[Header, list[Table]]:
    revision = moorage_migrations.current_revision(connection)
    if revision is None:
        raise StartupError("empty_database", "The database was never migrated: there is nothing to back up.")
    if not moorage_migrations.known(revision):
        raise StartupError(
            "newer_database",
            f"The database is at revision {revision}, which this release doesn't know: "
            "back it up with the release that made it.",
        )
    # Only Moorage's own tables: others couldn't be restored.
    tables = contents.tables(connection, moorage_migrations.tables(revision))
    outlines = [
        Outline(name=table.name, columns=table.columns.keys(), rows=contents.count(connection, table))
        for table in tables
    ]
    return Header(release=version("moorage-controller"), revision=revision, made_at=now, tables=outlines), tables


def check(path: Path, keyring: Keyring | None) -> Header:
    """Read a whole backup and decrypt each of its secrets; `keyring` is None without a key. Blocking.

    Raises StartupError if it can't be restored by this release with these keys.
    """
    sealed = contents.sealed_columns()
    with BackupReader(path) as reader:
        wrong: StartupError | None = None
        for table, rows in reader.batches():
            for row in rows if wrong is None else ():
                values = dict(zip(table.columns, row, strict=True))
                wrong = wrong or _unopened(keyring, table.name, values, sealed.get(table.name, ()))
        # Check integrity first: damage would look like a wrong key.
        if not moorage_migrations.known(reader.header.revision):
            raise newer_backup(path, reader.header.release)
        if wrong is not None:
            raise wrong
        return reader.header


def _unopened(
    keyring: Keyring | None, table: str, values: Mapping[str, object], columns: Sequence[str]
) -> StartupError | None:
    for column in columns:
        secret = values.get(column)
        if secret is None:
            continue
        if keyring is None:
            return StartupError(
                "missing_secret",
                "There is no encryption key here, so nothing was restored: set ENCRYPTION_KEY to the key that was in "
                "use when the backup was made, or put that controller's file encryption_key into the data folder.",
            )
        try:
            # A damaged header may have no `id`: then decryption fails, and the checksum at the end shows the reason.
            keyring.open(Ciphertext(str(secret)), column=f"{table}.{column}", row=str(values.get("id")))
        except UndecryptableError as error:
            return StartupError(
                "wrong_encryption_key",
                f"The backup's secrets can't be opened with this encryption key, so nothing was restored. {error}",
            )
    return None


async def restore(database: Database, path: Path) -> None:
    """Restore a backup that passed `check` into an empty database, then upgrade it to this release's revision.

    All in one transaction. Raises StartupError; then the database is unchanged.
    """
    with await asyncio.to_thread(BackupReader, path) as reader:
        batches = reader.batches()
        try:
            async with database.migrate() as connection:
                await connection.run_sync(_prepare, reader.header.revision)
                names = [outline.name for outline in reader.header.tables]
                tables = {table.name: table for table in await connection.run_sync(contents.tables, names)}
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    outline, rows = batch
                    await contents.put(connection, tables[outline.name], outline.columns, rows)
                await connection.run_sync(moorage_migrations.upgrade, metadata)
        except (DBAPIError, DatabaseUnavailableError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error.reason
            raise StartupError(
                "restore_failed", f"The database refused the backup, and nothing was restored: {reason}"
            ) from None


def _prepare(connection: Connection, revision: str) -> None:
    """Migrate an empty database to a revision, from no tables or from any other known revision."""
    current = moorage_migrations.current_revision(connection)
    ours = not contents.has_tables(connection) if current is None else moorage_migrations.known(current)
    if not ours or not contents.is_empty(connection):
        raise StartupError(
            "target_not_empty",
            "The database to restore into isn't empty, and a restore overwrites nothing: set MOORAGE_DATA_DIR to "
            "another folder, or DATABASE_URL to a new database.",
        )
    if current not in {None, revision}:
        moorage_migrations.downgrade(connection, "base")
    moorage_migrations.upgrade(connection, metadata, revision)
