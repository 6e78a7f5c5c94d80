"""The `changes` table: each change of an app, server or operation gets a number, in commit order on all controllers.

Writes are serialized, so no gap in the numbers is filled later: a reader that has read up to one has all before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Uuid, delete, func, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.schema import changes

_BATCH_SIZE = 500


class Kind(StrEnum):
    """Kind of a change; it determines the name of the event."""

    APP = "app"
    SERVER = "server"
    OPERATION = "operation"
    STOPPING_SOON = "stopping_soon"


@dataclass(frozen=True, slots=True)
class Change:
    """The last change of one resource; the resource may be deleted already."""

    number: int
    kind: Kind
    resource_id: UUID


async def note(connection: AsyncConnection, kind: Kind, resource_id: UUID) -> None:
    """Record a change with the next number, in the write transaction that makes it."""
    number = select(func.coalesce(func.max(changes.c.number), 0) + 1, literal(kind.value), literal(resource_id, Uuid()))
    await connection.execute(insert(changes).from_select(["number", "kind", "resource_id"], number))


async def note_all(connection: AsyncConnection, kind: Kind, resource_ids: Sequence[UUID]) -> None:
    """Record changes of several resources, like `note`."""
    if resource_ids:
        last = (await connection.execute(select(func.coalesce(func.max(changes.c.number), 0)))).scalar_one()
        rows = [
            {"number": last + n, "kind": kind.value, "resource_id": resource_id}
            for n, resource_id in enumerate(resource_ids, 1)
        ]
        await connection.execute(insert(changes), rows)


async def span(connection: AsyncConnection) -> tuple[int, int]:
    """Return the first and the last stored number; 0 if there is none."""
    query = select(func.coalesce(func.min(changes.c.number), 0), func.coalesce(func.max(changes.c.number), 0))
    first, last = (await connection.execute(query)).one()
    return int(first), int(last)


async def after(connection: AsyncConnection, number: int) -> Sequence[Change]:
    """Return up to 500 changes after a number, one per resource and kind, in the order of the last change."""
    last = func.max(changes.c.number).label("last")
    query = (
        select(last, changes.c.kind, changes.c.resource_id)
        .where(changes.c.number > number, changes.c.resource_id.is_not(None))
        .group_by(changes.c.kind, changes.c.resource_id)
        .order_by(last)
        .limit(_BATCH_SIZE)
    )
    rows = await connection.execute(query)
    return [Change(row.last, Kind(row.kind), row.resource_id) for row in rows]


async def remove_old(connection: AsyncConnection, keep: int) -> None:
    """Delete all but the last `keep` numbers."""
    newest = (await connection.execute(select(func.max(changes.c.number)))).scalar_one()
    if newest is not None:
        await connection.execute(delete(changes).where(changes.c.number <= newest - keep))
