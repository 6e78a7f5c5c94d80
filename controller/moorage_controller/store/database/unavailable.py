"""A database that is away for a while, told apart from a statement that is wrong."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from moorage_controller.errors import DatabaseUnavailableError

log = structlog.get_logger(__name__)

_SQLITE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_POSTGRESQL = frozenset({"08", "28", "3D", "53", "55", "57"})
"""Classes of errors that are the server's state: connection, login, no such database, out of resources, lock not
available, shut down (appendix A of its manual)."""


@contextmanager
def translate_db_errors() -> Iterator[None]:
    """Raise DatabaseUnavailableError for what tells of the database's state, and let all else pass."""
    try:
        yield
    except (OSError, DBAPIError, PoolTimeoutError) as error:
        reason = str(error)
        if isinstance(error, DBAPIError):
            if not _is_unavailable(error):
                raise
            # The driver's own words; the whole has the statement and its values in it.
            reason = str(error.orig)
        log.warning("database_unavailable", reason=reason)
        raise DatabaseUnavailableError(reason) from error


def _is_unavailable(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # The low byte is the kind, what is above it a detail (https://sqlite.org/rescode.html).
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE
    state = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or state[:2] in _POSTGRESQL
