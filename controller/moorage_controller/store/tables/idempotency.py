"""The `idempotency_keys` table: responses to requests with an Idempotency-Key."""

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
    """A row of `idempotency_keys`: `fingerprint` identifies the request, `reply` is the body, without secrets."""

    user_id: UUID
    key: str
    fingerprint: str
    reply: str
    created_at: datetime


async def take(connection: AsyncConnection, user_id: UUID, key: str, now: datetime) -> KeptReply | None:
    """Return the response stored for a user's key. Call it in a write transaction, which makes others wait."""
    table = idempotency_keys.c
    query = select(*columns(KeptReply, idempotency_keys)).where(
        table.user_id == user_id, table.key == key, table.created_at > now - KEPT_FOR
    )
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(KeptReply, row)


async def keep(connection: AsyncConnection, reply: KeptReply) -> None:
    """Insert a response, and delete expired ones."""
    table = idempotency_keys.c
    await connection.execute(delete(idempotency_keys).where(table.created_at <= reply.created_at - KEPT_FOR))
    values = to_values(reply)
    # Insert nothing if the user was deleted concurrently: a plain insert would fail the whole transaction.
    owner = select(*(literal(value, table[name].type) for name, value in values.items()))
    owner = owner.where(users.c.id == reply.user_id)
    await connection.execute(insert(idempotency_keys).from_select(list(values), owner))
