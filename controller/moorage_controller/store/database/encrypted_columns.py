"""Access to all encrypted columns, found by their type, so that no new column is missed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.table_dump import sealed_columns
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.schema import metadata

_BATCH_SIZE = 100


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed text and its location: `column` is "table.column", `row` the row's ID, both as used for encryption."""

    column: str
    row: str
    text: Ciphertext


def columns() -> Sequence[Column[Any]]:
    """Return all columns with sealed text."""
    return [metadata.tables[table].c[name] for table, names in sealed_columns().items() for name in names]


async def page(connection: AsyncConnection, column: Column[Any], after: object | None) -> Sequence[tuple[Any, Sealed]]:
    """Return up to 100 of a column's sealed texts with their row IDs, in order, after the ID `after`."""
    key = column.table.c.id
    query = select(key, column).where(column.is_not(None)).order_by(key).limit(_BATCH_SIZE)
    rows = await connection.execute(query if after is None else query.where(key > after))
    return [(row_id, Sealed(str(column), str(row_id), text)) for row_id, text in rows]


async def replace(
    connection: AsyncConnection, column: Column[Any], row_id: object, old: Ciphertext, new: Ciphertext
) -> bool:
    """Replace a sealed text (compare-and-set); return False if the old one is no longer there."""
    query = update(column.table).where(column.table.c.id == row_id, column == old).values({column.name: new})
    return (await connection.execute(query)).rowcount == 1
