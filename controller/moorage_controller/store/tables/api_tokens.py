"""The `api_tokens` table: only a digest of each token is stored, never the secret."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import api_tokens


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A row of `api_tokens`: `digest` is SHA-256 in hex, `scopes` is a comma-separated list."""

    id: UUID
    user_id: UUID
    name: str
    digest: str
    scopes: str
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


async def add(connection: AsyncConnection, token: ApiToken) -> None:
    """Insert a token."""
    await connection.execute(insert(api_tokens).values(to_values(token)))


async def of_user(connection: AsyncConnection, user_id: UUID) -> Sequence[ApiToken]:
    """Return a user's tokens, sorted by name."""
    query = select(*columns(ApiToken, api_tokens)).where(api_tokens.c.user_id == user_id)
    rows = await connection.execute(query.order_by(api_tokens.c.name, api_tokens.c.id))
    return [to_dataclass(ApiToken, row) for row in rows]


async def get(connection: AsyncConnection, token_id: UUID) -> ApiToken | None:
    """Return a token by ID, or None."""
    query = select(*columns(ApiToken, api_tokens)).where(api_tokens.c.id == token_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(ApiToken, row)


async def by_digest(connection: AsyncConnection, digest: str) -> ApiToken | None:
    """Return a token by digest, or None."""
    query = select(*columns(ApiToken, api_tokens)).where(api_tokens.c.digest == digest)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(ApiToken, row)


async def note_use(connection: AsyncConnection, token_id: UUID, now: datetime) -> None:
    """Set the time of a token's last use."""
    await connection.execute(update(api_tokens).where(api_tokens.c.id == token_id).values(last_used_at=now))


async def remove(connection: AsyncConnection, token_id: UUID) -> bool:
    """Delete a token; return whether it existed."""
    return (await connection.execute(delete(api_tokens).where(api_tokens.c.id == token_id))).rowcount > 0


async def remove_all(connection: AsyncConnection, user_id: UUID) -> int:
    """Delete all tokens of a user; return the count."""
    return (await connection.execute(delete(api_tokens).where(api_tokens.c.user_id == user_id))).rowcount
