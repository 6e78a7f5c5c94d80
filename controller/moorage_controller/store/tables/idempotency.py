"""What was created under a caller's Idempotency-Key, and the reply it got."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import idempotency_keys, users

KEPT_FOR = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A row of `idempotency_keys`: `fingerprint` tells the request, `reply` is its answer's body, without secrets."""

    user_id: UUID
    key: str
    fingerprint: str
    reply: str
    created_at: datetime


async def take(connection: AsyncConnection, user_id: UUID, key: str, now: datetime) -> KeptReply | None:
    """Return what is kept under a user's key. In a write transaction: others who ask for it wait until it ends."""
    table = idempotency_keys.c
    query = select(*columns(KeptReply, idempotency_keys)).where(
        table.user_id == user_id, table.key == key, table.created_at > now - KEPT_FOR
    )
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(KeptReply, row)


async def keep(connection: AsyncConnection, reply: KeptReply) -> None:
    """Insert a reply, and drop all that are over."""
    table = idempotency_keys.c
    await connection.execute(delete(idempotency_keys).where(table.created_at <= reply.created_at - KEPT_FOR))
    values = to_values(reply)
    # A user who was removed in the middle of it has no keys; a plain insert would fail with all that was created.
    owner = select(*(literal(value, table[name].type) for name, value in values.items()))
    owner = owner.where(users.c.id == reply.user_id)
    await connection.execute(insert(idempotency_keys).from_select(list(values), owner))
