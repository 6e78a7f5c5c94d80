"""The audit log: what was done, by whom, from where."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.rows import columns, to_dataclass, to_values
from moorage_controller.store.tables import audit_logs


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A row of `audit_logs`: `message` is the sentence, `details` the object that the guide calls so."""

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
    """Append an entry."""
    await connection.execute(insert(audit_logs).values(to_values(entry)))


async def page(
    connection: AsyncConnection, *, user_id: UUID | None, limit: int, offset: int
) -> tuple[Sequence[AuditEntry], int]:
    """Return a page of entries, the newest first, and how many there are in all; of one user where one is given."""
    query = select(*columns(AuditEntry, audit_logs))
    total = select(func.count()).select_from(audit_logs)
    if user_id is not None:
        query, total = (q.where(audit_logs.c.user_id == user_id) for q in (query, total))
    query = query.order_by(audit_logs.c.created_at.desc(), audit_logs.c.id).limit(limit).offset(offset)
    rows = [to_dataclass(AuditEntry, row) for row in await connection.execute(query)]
    return rows, (await connection.execute(total)).scalar_one()
