"""User management for admins: create, change and delete users. The last active admin can't be removed."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.line import Place
from moorage_controller.auth.passwords import Passwords
from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, ForbiddenError, NotFoundError
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.idempotency import NO_KEY, IdempotentRequest
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import api_tokens
from moorage_controller.store.tables import users as store
from moorage_controller.store.tables.users import User

_PUBLIC_NAMES = {"full_name": "fullName", "is_active": "isActive"}


class Accounts:
    """Creates, changes and deletes users."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords

    async def all(self) -> Sequence[User]:
        """Return all users by name."""
        async with self._database.read() as connection:
            return await store.all_users(connection)

    async def get(self, user_id: UUID) -> User:
        """Return a user. Raises NotFoundError."""
        async with self._database.read() as connection:
            return _found(await store.by_id(connection, user_id))

    async def create(
        self, fields: Mapping[str, Any], password: str, actor: Actor, once: IdempotentRequest[User] = NO_KEY
    ) -> User:
        """Create a user; `fields` are columns. Raises ConflictError if the name is taken."""
        password_hash = await self._passwords.hash(password, _place(actor))
        try:
            async with self._database.write() as connection:
                now = await self._database.now(connection)
                await once.begin(connection, now)
                plain: dict[str, Any] = {"role": "user", "email": None, "full_name": None, "is_active": True}
                user = User(
                    id=uuid4(),
                    password_hash=password_hash,
                    last_login_at=None,
                    created_at=now,
                    updated_at=now,
                    **{**plain, **fields},
                )
                await store.add(connection, user)
                resource = ("user", user.id, user.username)
                details = {"role": user.role}
                await record(
                    connection, now, actor, Action.CREATE, resource, f"User {user.username} was made.", details
                )
                await once.keep(connection, now, user)
        except IntegrityError:
            raise _taken() from None
        return user

    async def update(self, user_id: UUID, changes: Mapping[str, Any], password: str | None, actor: Actor) -> User:
        """Change columns, and the password if given; absent means unchanged.

        A new password, a new role and deactivation end the user's sessions; all but a promotion revoke the user's API
        tokens too. Raises NotFoundError; ConflictError for a taken name and for the last active admin; ForbiddenError
        for the caller's own password, whose change requires the current one.
        """
        if password is not None and user_id == actor.user_id:
            raise ForbiddenError("own_password", "Change your own password with POST /api/auth/password.")
        password_hash = None if password is None else await self._passwords.hash(password, _place(actor))
        try:
            async with self._database.write() as connection:
                now = await self._database.now(connection)
                admins = await store.active_admins(connection)
                old = _found(await store.by_id(connection, user_id))
                values = {name: value for name, value in changes.items() if getattr(old, name) != value}
                demoted = values.get("role") == "user"
                deactivated = values.get("is_active") is False
                if demoted or deactivated:
                    _keep_last(admins, old)
                changed = sorted(_PUBLIC_NAMES.get(name, name) for name in values)
                if password_hash is not None:
                    values["password_hash"] = password_hash
                    changed.append("password")
                await store.change(connection, user_id, {**values, "updated_at": now})
                dead = demoted or deactivated or password_hash is not None
                ended = await _end(connection, user_id, sessions=dead or "role" in values, tokens=dead)
                new = _found(await store.by_id(connection, user_id))
                resource = ("user", user_id, new.username)
                details = {"changed": changed, **ended}
                await record(
                    connection, now, actor, Action.UPDATE, resource, f"User {old.username} was changed.", details
                )
        except IntegrityError:
            raise _taken() from None
        return new

    async def delete(self, user_id: UUID, actor: Actor) -> None:
        """Delete a user and all of their tokens. Raises NotFoundError; ConflictError for the last active admin."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            admins = await store.active_admins(connection)
            user = _found(await store.by_id(connection, user_id))
            _keep_last(admins, user)
            await store.remove(connection, user_id)
            resource = ("user", user_id, user.username)
            await record(connection, now, actor, Action.DELETE, resource, f"User {user.username} was removed.")


async def _end(connection: AsyncConnection, user_id: UUID, *, sessions: bool, tokens: bool) -> dict[str, int]:
    ended = await store.end_sessions(connection, user_id) if sessions else 0
    revoked = await api_tokens.remove_all(connection, user_id) if tokens else 0
    return {"sessionsEnded": ended, "tokensRevoked": revoked}


def _place(actor: Actor) -> Place:
    return Place(str(actor.user_id), known=True)


def _keep_last(admins: set[UUID], user: User) -> None:
    if admins == {user.id}:
        raise ConflictError("last_admin", f"{user.username} is the last active admin: make another one first.")


def _found(user: User | None) -> User:
    if user is None:
        raise NotFoundError("user_not_found", "There is no user of that id.")
    return user


def _taken() -> ConflictError:
    return ConflictError("username_taken", "Another user has that name: choose another one.")
