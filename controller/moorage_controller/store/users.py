"""Users, and the tokens of theirs that are dead before their time."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.rows import columns, to_dataclass, to_values
from moorage_controller.store.tables import revoked_tokens, users


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`. `tokens_valid_after`: tokens issued before that moment are dead."""

    id: UUID
    username: str
    password_hash: str
    role: str
    email: str | None
    full_name: str | None
    is_active: bool
    last_login_at: datetime | None
    tokens_valid_after: datetime | None
    created_at: datetime
    updated_at: datetime


async def count(connection: AsyncConnection) -> int:
    """Return how many users there are."""
    return (await connection.execute(select(func.count()).select_from(users))).scalar_one()


async def add(connection: AsyncConnection, user: User) -> None:
    """Insert a user. Raises IntegrityError when the name is taken."""
    await connection.execute(insert(users).values(to_values(user)))


async def by_id(connection: AsyncConnection, user_id: UUID) -> User | None:
    """Return a user, None when there is none of that id."""
    row = (await connection.execute(select(*columns(User, users)).where(users.c.id == user_id))).first()
    return None if row is None else to_dataclass(User, row)


async def by_name(connection: AsyncConnection, username: str) -> User | None:
    """Return a user, None when there is none of that name."""
    row = (await connection.execute(select(*columns(User, users)).where(users.c.username == username))).first()
    return None if row is None else to_dataclass(User, row)


async def set_last_login(connection: AsyncConnection, user_id: UUID, now: datetime) -> None:
    """Note when a user last logged in."""
    await connection.execute(update(users).where(users.c.id == user_id).values(last_login_at=now))


async def revoke_token(connection: AsyncConnection, jti: UUID, expires_at: datetime) -> None:
    """Kill one token; doing it twice is no error."""
    if not await is_revoked(connection, jti):
        await connection.execute(insert(revoked_tokens).values(jti=jti, expires_at=expires_at))


async def is_revoked(connection: AsyncConnection, jti: UUID) -> bool:
    """Whether a token was killed."""
    row = await connection.execute(select(revoked_tokens.c.jti).where(revoked_tokens.c.jti == jti))
    return row.first() is not None


async def forget_expired_tokens(connection: AsyncConnection, now: datetime) -> None:
    """Drop revocations of tokens that are expired anyway."""
    await connection.execute(delete(revoked_tokens).where(revoked_tokens.c.expires_at < now))
