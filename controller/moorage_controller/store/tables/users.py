"""The `users` and `sessions` tables: a login token is valid while its session exists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ScalarSelect, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import sessions, users


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`."""

    id: UUID
    username: str
    password_hash: str
    role: str
    email: str | None
    full_name: str | None
    is_active: bool
    last_login_at: datetime | None
    created_at: datetime
    updated_at: datetime


async def count(connection: AsyncConnection) -> int:
    """Return the number of users."""
    return (await connection.execute(select(func.count()).select_from(users))).scalar_one()


async def add(connection: AsyncConnection, user: User) -> None:
    """Insert a user. Raises IntegrityError if the name is taken."""
    await connection.execute(insert(users).values(to_values(user)))


async def by_id(connection: AsyncConnection, user_id: UUID) -> User | None:
    """Return a user by ID, or None."""
    row = (await connection.execute(select(*columns(User, users)).where(users.c.id == user_id))).first()
    return None if row is None else to_dataclass(User, row)


async def by_name(connection: AsyncConnection, username: str) -> User | None:
    """Return a user by name, or None."""
    row = (await connection.execute(select(*columns(User, users)).where(users.c.username == username))).first()
    return None if row is None else to_dataclass(User, row)


async def set_last_login(connection: AsyncConnection, user_id: UUID, now: datetime) -> None:
    """Set the time of a user's last login."""
    await connection.execute(update(users).where(users.c.id == user_id).values(last_login_at=now))


async def all_users(connection: AsyncConnection) -> Sequence[User]:
    """Return all users, sorted by name."""
    rows = await connection.execute(select(*columns(User, users)).order_by(users.c.username, users.c.id))
    return [to_dataclass(User, row) for row in rows]


async def active_admins(connection: AsyncConnection) -> set[UUID]:
    """Return the IDs of the active admins; in a write transaction no concurrent one can remove any."""
    query = select(users.c.id).where(users.c.role == "admin", users.c.is_active)
    return set((await connection.execute(query)).scalars())


async def change(connection: AsyncConnection, user_id: UUID, values: Mapping[str, Any]) -> None:
    """Set columns of a user. Raises IntegrityError if the name is taken."""
    await connection.execute(update(users).where(users.c.id == user_id).values(**values))


async def remove(connection: AsyncConnection, user_id: UUID) -> None:
    """Delete a user, their sessions and API tokens; audit entries and operations stay, without the reference."""
    await connection.execute(delete(users).where(users.c.id == user_id))


def reference(user_id: UUID | None) -> ScalarSelect[UUID]:
    """Return the value for a reference to a user: null, not an error, if the user was deleted concurrently."""
    return select(users.c.id).where(users.c.id == user_id).scalar_subquery()


async def add_session(connection: AsyncConnection, jti: UUID, user_id: UUID, expires_at: datetime) -> None:
    """Add the session that makes a login token valid."""
    await connection.execute(insert(sessions).values(jti=jti, user_id=user_id, expires_at=expires_at))


async def has_session(connection: AsyncConnection, jti: UUID, user_id: UUID) -> bool:
    """Return whether a login token of that user is valid."""
    query = select(sessions.c.jti).where(sessions.c.jti == jti, sessions.c.user_id == user_id)
    return (await connection.execute(query)).first() is not None


async def end_session(connection: AsyncConnection, jti: UUID) -> None:
    """End a session, which invalidates its login token; repeating it is no error."""
    await connection.execute(delete(sessions).where(sessions.c.jti == jti))


async def end_sessions(connection: AsyncConnection, user_id: UUID, keep: UUID | None = None) -> int:
    """End all sessions of a user except `keep`; return the count."""
    query = delete(sessions).where(sessions.c.user_id == user_id)
    if keep is not None:
        query = query.where(sessions.c.jti != keep)
    return (await connection.execute(query)).rowcount


async def forget_expired_sessions(connection: AsyncConnection, now: datetime) -> None:
    """Delete expired sessions."""
    await connection.execute(delete(sessions).where(sessions.c.expires_at < now))
