"""Table dump: read and insert all rows as values that are equal on SQLite and PostgreSQL."""

import base64
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CHAR,
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Uuid,
    event,
    func,
    insert,
    inspect,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from moorage_controller.store.database.types import EncryptedText, UtcDateTime
from moorage_controller.store.schema import metadata

_VERSION_TABLE = "alembic_version"
_CHANGES = "changes"
_LEFT_OUT = frozenset({"sessions", "controllers", _CHANGES})
"""Not dumped: an ended session must not be restored; running controllers and change numbers are transient."""
_UUID_DIGITS = 32
_BATCH_SIZE = 500

Row = list[Any]
"""JSON values of a row: IDs and times are text, bytes are base64, and the value of a JSON column is unchanged."""


def tables(connection: Connection, names: Iterable[str]) -> list[Table]:
    """Return the named tables to dump, as reflected from the database, referenced tables first.

    Raises TypeError for a column of an unknown type.
    """
    found = MetaData()
    event.listen(found, "column_reflect", _as_declared)
    found.reflect(connection, only=sorted(set(names) - _LEFT_OUT))
    return found.sorted_tables


def is_empty(connection: Connection) -> bool:
    """Return whether no table has a row, Moorage's or not; versions and changes don't count."""
    found = MetaData()
    found.reflect(connection)
    return not any(
        connection.execute(select(literal(1)).select_from(table).limit(1)).first()
        for table in found.tables.values()
        if table.name not in {_VERSION_TABLE, _CHANGES}
    )


def has_tables(connection: Connection) -> bool:
    """Return whether there is any table except the Alembic version table."""
    return bool({*inspect(connection).get_table_names()} - {_VERSION_TABLE})


def count(connection: Connection, table: Table) -> int:
    """Return the row count of a table."""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


async def rows(connection: AsyncConnection, table: Table) -> AsyncIterator[list[Row]]:
    """Yield all rows in batches of up to 500; values are in the order of the table's columns."""
    result = await connection.stream(select(table))
    async for part in result.partitions(_BATCH_SIZE):
        yield [[_to_json(value) for value in row] for row in part]


async def put(connection: AsyncConnection, table: Table, names: Sequence[str], new: Sequence[Row]) -> None:
    """Insert rows with values in the order of `names`. Raises KeyError for an unknown column."""
    columns = [table.c[name] for name in names]
    values = [
        {column.name: _from_json(column, value) for column, value in zip(columns, row, strict=True)} for row in new
    ]
    await connection.execute(insert(table), values)


def sealed_columns() -> Mapping[str, Sequence[str]]:
    """Return the columns with sealed secrets by table; the primary key of such a table is `id`."""
    found = {
        table.name: [column.name for column in table.columns if isinstance(column.type, EncryptedText)]
        for table in metadata.sorted_tables
    }
    return {table: columns for table, columns in found.items() if columns}


def _as_declared(_inspector: object, _table: str, column: dict[str, Any]) -> None:
    """Set the type of a reflected column to the portable one of the schema."""
    column["type"] = _declared(column["type"])


def _declared(found: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(found, Uuid) or (isinstance(found, CHAR) and found.length == _UUID_DIGITS):
        return Uuid()
    if isinstance(found, DateTime):
        return UtcDateTime()
    if isinstance(found, JSON):
        return JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    if isinstance(found, Boolean | Integer | LargeBinary | String):
        return found
    raise TypeError(f"No backup knows columns of type {found!r}")


def _to_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, UUID) else value


def _from_json(column: Column[Any], value: Any) -> object:  # noqa: ANN401 - JSON
    if value is None:
        return None
    if isinstance(column.type, Uuid):
        return UUID(value)
    if isinstance(column.type, LargeBinary):
        return base64.b64decode(value)
    return datetime.fromisoformat(value) if isinstance(column.type, UtcDateTime) else value
