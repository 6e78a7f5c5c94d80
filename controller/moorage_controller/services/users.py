"""Logging in and out, and whether a token still counts."""

import secrets
from uuid import uuid4

from moorage_controller.auth import tokens
from moorage_controller.auth.passwords import MAX_BYTES, hash_password, verify_password
from moorage_controller.auth.roles import Actor, Origin, Principal, Role
from moorage_controller.errors import NotAuthenticatedError, StartupError
from moorage_controller.services.audit import Action, record
from moorage_controller.store import users as store
from moorage_controller.store.engine import Database
from moorage_controller.store.users import User

_ROLES = {"admin": Role.ADMIN, "user": Role.USER}


class Users:
    """Decides who somebody is. `secret` signs login tokens."""

    def __init__(self, database: Database, secret: str) -> None:
        self._database = database
        self._secret = secret

    async def ensure_first_admin(self, username: str, password: str) -> str | None:
        """Make the first admin where there is no user at all.

        Returns the password when it was made here (to be printed once), None otherwise. Raises StartupError for one
        that is too long.
        """
        async with self._database.read() as connection:
            if await store.count(connection) > 0:
                return None
        if len(password.encode()) > MAX_BYTES:
            raise StartupError("long_password", f"ADMIN_PASSWORD is too long: use {MAX_BYTES} bytes at most.")
        made = None if password else secrets.token_urlsafe(12)
        password_hash = await hash_password(made or password)
        async with self._database.write() as connection:
            if await store.count(connection) > 0:
                return None
            now = await self._database.now(connection)
            user = User(uuid4(), username, password_hash, "admin", None, None, True, None, None, now, now)  # noqa: FBT003 - a row
            await store.add(connection, user)
            actor = Actor(None, "controller")
            await record(
                connection, now, actor, Action.CREATE, ("user", user.id, username), "The first admin was made."
            )
        return made

    async def login(self, username: str, password: str, origin: Origin) -> tuple[User, str]:
        """Return the user and a token. Raises NotAuthenticatedError, alike for an unknown name and a wrong password."""
        async with self._database.read() as connection:
            user = await store.by_name(connection, username)
        right = await verify_password(password, user.password_hash if user is not None and user.is_active else None)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            if user is None or not right:
                actor = Actor(user.id if user else None, username[:255], origin)
                resource = ("user", user.id if user else None, username[:255])
                await record(connection, now, actor, Action.LOGIN_FAILED, resource, "A login failed.")
            else:
                await store.set_last_login(connection, user.id, now)
                actor = Actor(user.id, user.username, origin)
                resource = ("user", user.id, user.username)
                await record(connection, now, actor, Action.LOGIN, resource, f"{user.username} logged in.")
        if user is None or not right:
            raise NotAuthenticatedError("bad_credentials", "The username or the password is wrong.")
        token = tokens.issue(self._secret, user_id=user.id, username=user.username, role=user.role, now=now)
        return user, token

    async def authenticate(self, token: str) -> Principal:
        """Return who a token stands for. Raises NotAuthenticatedError for any that doesn't count (any more)."""
        dead = NotAuthenticatedError("bad_token", "The token is invalid, expired or revoked: log in again.")
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            try:
                claims = tokens.read(self._secret, token, now)
            except tokens.BadTokenError:
                raise dead from None
            user = await store.by_id(connection, claims.user_id)
            if user is None or not user.is_active or user.role != claims.role:
                raise dead
            if user.tokens_valid_after is not None and claims.issued_at < user.tokens_valid_after:
                raise dead
            if await store.is_revoked(connection, claims.jti):
                raise dead
        return Principal(user.id, user.username, _ROLES[user.role], claims.jti, claims.expires_at)

    async def logout(self, principal: Principal, actor: Actor) -> None:
        """Kill the token that came with the request; it stays dead after a restart."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await store.forget_expired_tokens(connection, now)
            await store.revoke_token(connection, principal.jti, principal.expires_at)
            resource = ("user", principal.user_id, principal.username)
            await record(connection, now, actor, Action.LOGOUT, resource, f"{principal.username} logged out.")
