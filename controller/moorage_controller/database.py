"""The database that the settings name."""

from moorage_common.clock import Clock

from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database, postgresql_url, sqlite_url


def open_database(settings: Settings, clock: Clock, *, clock_decides: bool = False) -> Database:
    """Open SQLite in the data folder, or PostgreSQL at DATABASE_URL; close it after use. Connects at first use."""
    path = settings.sqlite_path
    url = postgresql_url(settings.database_url) if path is None else sqlite_url(path)
    return Database(url, clock, clock_decides=clock_decides)
