"""Detection of an unavailable database, as opposed to an invalid statement."""

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
"""SQLSTATE classes for the server's state: connection exception, invalid authorization, invalid catalog name,
insufficient resources, object not in prerequisite state, operator intervention (PostgreSQL manual, appendix A)."""


@contextmanager
def translate_db_errors() -> Iterator[None]:
    """Translate connection-level driver errors into DatabaseUnavailableError."""
    try:
        yield
    except (OSError, DBAPIError, PoolTimeoutError) as error:
        reason = str(error)
        if isinstance(error, DBAPIError):
            if not _is_unavailable(error):
                raise
            # Only the driver's message: the full text contains the statement and its values.
            reason = str(error.orig)
        log.warning("database_unavailable", reason=reason)
        raise DatabaseUnavailableError(reason) from error


def _is_unavailable(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # The low byte is the primary result code, the rest the extended one (https://sqlite.org/rescode.html).
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE
    state = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or state[:2] in _POSTGRESQL
