"""The database from the settings."""

from moorage_common.clock import Clock

from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database, postgresql_url, sqlite_url


def open_database(settings: Settings, clock: Clock, *, clock_decides: bool = False) -> Database:
    """Open SQLite in the data folder, or PostgreSQL at DATABASE_URL. Connects on first use; close it after use."""
    path = settings.sqlite_path
    url = postgresql_url(settings.database_url) if path is None else sqlite_url(path)
    return Database(url, clock, clock_decides=clock_decides)
