"""The `audit_logs` table: actions, their actors and their origin."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import audit_logs
from moorage_controller.store.tables.users import reference


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row of `audit_logs`: `message` is the API's `details`, a sentence; `details` is its `data`."""

    id: UUID
    user_id: UUID | None
    username: str | None
    action: str
    resource_type: str
    resource_id: UUID | None
    resource_name: str | None
    message: str
    details: dict[str, Any] | None
    ip_address: str | None
    user_agent: str | None
    created_at: datetime


async def add(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Append an entry; if the user was deleted concurrently, only the name is stored."""
    values = {**to_values(entry), "user_id": reference(entry.user_id)}
    await connection.execute(insert(audit_logs).values(values))


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Filter of audit entries; None disables a condition. `since` and `until` are inclusive."""

    user_id: UUID | None = None
    action: str | None = None
    resource_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def page(
    connection: AsyncConnection, *, wanted: AuditFilter, limit: int, offset: int
) -> tuple[Sequence[AuditEntry], int]:
    """Return a page of matching entries, newest first, and their total count."""
    query = select(*columns(AuditEntry, audit_logs))
    total = select(func.count()).select_from(audit_logs)
    for condition in _conditions(wanted):
        query, total = (q.where(condition) for q in (query, total))
    query = query.order_by(audit_logs.c.created_at.desc(), audit_logs.c.id).limit(limit).offset(offset)
    rows = [to_dataclass(AuditEntry, row) for row in await connection.execute(query)]
    return rows, (await connection.execute(total)).scalar_one()


async def oldest(connection: AsyncConnection, before: datetime, limit: int) -> Sequence[AuditEntry]:
    """Return up to `limit` entries from before `before`, oldest first."""
    query = select(*columns(AuditEntry, audit_logs)).where(audit_logs.c.created_at < before)
    query = query.order_by(audit_logs.c.created_at, audit_logs.c.id).limit(limit)
    return [to_dataclass(AuditEntry, row) for row in await connection.execute(query)]


async def remove(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Delete entries."""
    await connection.execute(delete(audit_logs).where(audit_logs.c.id.in_(ids)))


def _conditions(wanted: AuditFilter) -> Iterator[ColumnElement[bool]]:
    for name in ("user_id", "action", "resource_type"):
        value = getattr(wanted, name)
        if value is not None:
            yield audit_logs.c[name] == value
    if wanted.since is not None:
        yield audit_logs.c.created_at >= wanted.since
    if wanted.until is not None:
        yield audit_logs.c.created_at <= wanted.until
