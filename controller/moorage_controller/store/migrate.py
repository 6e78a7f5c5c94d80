"""Bringing the database to the program's revision, or saying why that can't be."""

import moorage_migrations
from sqlalchemy import Connection

from moorage_controller.errors import StartupError
from moorage_controller.store.engine import Database
from moorage_controller.store.tables import metadata


async def migrate(database: Database) -> None:
    """Upgrade to the newest revision, in one transaction. Raises StartupError for a database from a newer release."""
    async with database.write() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    current = moorage_migrations.current_revision(connection)
    if current is not None and not moorage_migrations.known(current):
        raise StartupError(
            "newer_database",
            f"The database is at revision {current}, which this release doesn't know: "
            "install the release that made it, or restore a backup.",
        )
    moorage_migrations.upgrade(connection, metadata)
