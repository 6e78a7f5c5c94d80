"""The `operations` table: requested operations, their actors and their results."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import operations
from moorage_controller.store.tables import changes
from moorage_controller.store.tables.apps import IN_FLIGHT
from moorage_controller.store.tables.changes import Kind
from moorage_controller.store.tables.users import reference

AGENT_KINDS = ("agent_install", "agent_uninstall")
"""Kinds of operations on a server's agent, not on an app."""
WAITS = '{"waits": true}'
"""The `request` of a stop that waits for its host to be reachable again."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of `operations`.

    `run_timeout` is in minutes; `deadline_at` is the time at which a start is cancelled on its host; `request` (JSON)
    holds the parameters of an operation on an agent, or WAITS; `driver` is the controller that drives it.
    """

    id: UUID
    kind: str
    app_id: UUID | None
    server_id: UUID | None
    actor_id: UUID | None
    actor: str
    created_at: datetime
    deadline_at: datetime
    state: str = "queued"
    auto_stop: bool = False
    transport: str | None = None
    run_id: UUID | None = None
    run_timeout: int | None = None
    exit_code: int | None = None
    error_code: str | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    request: str | None = None
    driver: UUID | None = None

    @property
    def in_flight(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in IN_FLIGHT

    @property
    def waits_for_host(self) -> bool:
        """Whether it is a stop that waits for an unreachable host instead of failing."""
        return self.request == WAITS


async def add(connection: AsyncConnection, operation: Operation) -> None:
    """Insert an operation. Raises IntegrityError if another one is in flight on the same app."""
    values = {**to_values(operation), "actor_id": reference(operation.actor_id)}
    await connection.execute(insert(operations).values(values))
    await changes.note(connection, Kind.OPERATION, operation.id)


async def add_stops(connection: AsyncConnection, stops: Sequence[Operation]) -> None:
    """Insert auto-stops, in the write transaction that found the apps without an operation in flight."""
    if stops:
        await connection.execute(insert(operations), [to_values(operation) for operation in stops])
        await changes.note_all(connection, Kind.OPERATION, [operation.id for operation in stops])


async def get(connection: AsyncConnection, operation_id: UUID) -> Operation | None:
    """Return an operation by ID, or None."""
    query = select(*columns(Operation, operations)).where(operations.c.id == operation_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Operation, row)


async def some(connection: AsyncConnection, operation_ids: Collection[UUID]) -> Sequence[Operation]:
    """Return the existing operations of those IDs."""
    query = select(*columns(Operation, operations)).where(operations.c.id.in_(operation_ids))
    return [to_dataclass(Operation, row) for row in await connection.execute(query)]


async def in_flight_on(connection: AsyncConnection, app_id: UUID) -> Operation | None:
    """Return the operation in flight on an app, or None."""
    query = select(*columns(Operation, operations)).where(
        operations.c.app_id == app_id, operations.c.state.in_(IN_FLIGHT)
    )
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Operation, row)


async def newest_on(connection: AsyncConnection, app_id: UUID) -> Operation | None:
    """Return the newest operation on an app, or None."""
    query = select(*columns(Operation, operations)).where(operations.c.app_id == app_id)
    row = (await connection.execute(query.order_by(operations.c.created_at.desc()).limit(1))).first()
    return None if row is None else to_dataclass(Operation, row)


async def agent_in_flight(connection: AsyncConnection, server_id: UUID) -> Operation | None:
    """Return the agent installation or removal in flight on a server, or None."""
    query = select(*columns(Operation, operations)).where(
        operations.c.server_id == server_id, operations.c.app_id.is_(None), operations.c.state.in_(IN_FLIGHT)
    )
    row = (await connection.execute(query.where(operations.c.kind.in_(AGENT_KINDS)))).first()
    return None if row is None else to_dataclass(Operation, row)


async def agents_in_flight(connection: AsyncConnection) -> Sequence[Operation]:
    """Return the agent installations and removals in flight on all servers."""
    query = select(*columns(Operation, operations)).where(
        operations.c.kind.in_(AGENT_KINDS), operations.c.app_id.is_(None), operations.c.state.in_(IN_FLIGHT)
    )
    return [to_dataclass(Operation, row) for row in await connection.execute(query)]


async def apps_in_flight(connection: AsyncConnection, server_id: UUID) -> bool:
    """Return whether an operation on an app of a server is in flight."""
    query = (
        select(func.count())
        .select_from(operations)
        .where(
            operations.c.server_id == server_id,
            operations.c.kind.not_in(AGENT_KINDS),
            operations.c.state.in_(IN_FLIGHT),
        )
    )
    return bool((await connection.execute(query)).scalar_one())


async def all_in_flight(connection: AsyncConnection) -> Sequence[Operation]:
    """Return all operations in flight, oldest first."""
    query = select(*columns(Operation, operations)).where(operations.c.state.in_(IN_FLIGHT))
    rows = await connection.execute(query.order_by(operations.c.created_at))
    return [to_dataclass(Operation, row) for row in rows]


async def shift_deadlines(connection: AsyncConnection, by: timedelta) -> None:
    """Shift the time limits of all operations in flight after a clock jump."""
    for operation in await all_in_flight(connection):
        values = {"deadline_at": operation.deadline_at + by}
        await connection.execute(update(operations).where(operations.c.id == operation.id).values(values))


async def claim(connection: AsyncConnection, operation: Operation, driver: UUID) -> None:
    """Set the driver of an operation, in the write transaction that found it without a live one."""
    await connection.execute(update(operations).where(operations.c.id == operation.id).values(driver=driver))


async def search(
    connection: AsyncConnection,
    *,
    app_id: UUID | None,
    server_id: UUID | None,
    state: str | None,
    limit: int,
    offset: int = 0,
) -> tuple[Sequence[Operation], int]:
    """Return a page of operations, newest first, and the total count; None disables a filter."""
    query = select(*columns(Operation, operations))
    total = select(func.count()).select_from(operations)
    for column, wanted in (("app_id", app_id), ("server_id", server_id), ("state", state)):
        if wanted is not None:
            query, total = (q.where(operations.c[column] == wanted) for q in (query, total))
    query = query.order_by(operations.c.created_at.desc(), operations.c.id).limit(limit).offset(offset)
    rows = [to_dataclass(Operation, row) for row in await connection.execute(query)]
    return rows, (await connection.execute(total)).scalar_one()


async def change_in_flight(connection: AsyncConnection, operation_id: UUID, values: Mapping[str, Any]) -> bool:
    """Set columns if the operation is in flight; return False if it has ended: an end is never overwritten."""
    query = update(operations).where(operations.c.id == operation_id, operations.c.state.in_(IN_FLIGHT))
    done = (await connection.execute(query.values(values))).rowcount == 1
    if done:
        await changes.note(connection, Kind.OPERATION, operation_id)
    return done


async def remove_old(connection: AsyncConnection, before: datetime, keep: int, at_once: int) -> int:
    """Delete up to `at_once` operations that ended before `before` or beyond the newest `keep`; return the count."""
    ended = operations.c.state.not_in(IN_FLIGHT)
    last_kept = (
        select(operations.c.finished_at)
        .where(ended)
        .order_by(operations.c.finished_at.desc())
        .offset(keep - 1)
        .limit(1)
    )
    limit = (await connection.execute(last_kept)).scalar_one_or_none()
    until = before if limit is None else max(before, limit)
    old = select(operations.c.id).where(ended, operations.c.finished_at < until).limit(at_once)
    return (await connection.execute(delete(operations).where(operations.c.id.in_(old)))).rowcount
