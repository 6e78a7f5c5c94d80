"""Login and logout, changes of one's own password, and token authentication."""

import secrets
from datetime import datetime
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth import tokens
from moorage_controller.auth.line import Place
from moorage_controller.auth.passwords import MAX_BYTES, Passwords
from moorage_controller.auth.roles import Actor, Origin, Principal
from moorage_controller.errors import InvalidError, NotAuthenticatedError, StartupError
from moorage_controller.services.accounts import api_tokens, login_limits
from moorage_controller.services.accounts.api_tokens import ROLES, ApiTokens
from moorage_controller.services.accounts.login_limits import Attempt
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import api_tokens as token_store
from moorage_controller.store.tables import users as store
from moorage_controller.store.tables.users import User

_MOST_REMEMBERED = 4096


class Users:
    """Authenticates users. `secret` signs login tokens."""

    def __init__(self, database: Database, secret: str, api_tokens: ApiTokens, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords
        self._known: set[str] = set()
        """Pairs of name and address that logged in recently; a full queue refuses others before any read."""
        self._secret = secret
        self._api_tokens = api_tokens

    async def ensure_first_admin(self, username: str, password: str) -> str | None:
        """Create the first admin if there are no users.

        Returns the password if it was generated here (to be printed once), else None. Raises StartupError for a
        password that is too long.
        """
        async with self._database.read() as connection:
            if await store.count(connection) > 0:
                return None
        if len(password.encode()) > MAX_BYTES:
            raise StartupError("long_password", f"ADMIN_PASSWORD is too long: use {MAX_BYTES} bytes at most.")
        made = None if password else secrets.token_urlsafe(12)
        password_hash = await self._passwords.hash(made or password, Place("first admin", known=True))
        async with self._database.write() as connection:
            if await store.count(connection) > 0:
                return None
            now = await self._database.now(connection)
            user = User(uuid4(), username, password_hash, "admin", None, None, True, None, now, now)  # noqa: FBT003 - a row
            await store.add(connection, user)
            actor = Actor(None, "controller")
            await record(
                connection, now, actor, Action.CREATE, ("user", user.id, username), "The first admin was made."
            )
        return made

    async def login(self, username: str, password: str, origin: Origin) -> tuple[User, str]:
        """Return the user and a token.

        Raises NotAuthenticatedError, alike for an unknown name and a wrong password, and TooManyRequestsError.
        """
        # Replace characters that no database can store; no stored name has them.
        username = username.encode(errors="replace").decode().replace("\0", "?")
        attempt = Attempt.of(username, origin.ip_address)
        if attempt.pair not in self._known:
            self._passwords.check(Place(attempt.neighbourhood, known=False))
        async with self._database.read() as connection:
            place = await login_limits.check(connection, attempt, await self._database.now(connection))
            user = await store.by_name(connection, username)
        known = user.password_hash if user is not None and user.is_active else None
        right = await self._passwords.verify(password, known, place)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            # Check again in the transaction that counts: concurrent attempts must gain no more than sequential ones.
            await login_limits.check(connection, attempt, now)
            fresh = await store.by_id(connection, user.id) if user is not None and right else None
            if user is None or fresh is None or not fresh.is_active or fresh.password_hash != user.password_hash:
                fresh = None
                await login_limits.failed(connection, attempt, now)
                actor = Actor(user.id if user else None, username[:255], origin)
                resource = ("user", user.id if user else None, username[:255])
                await record(connection, now, actor, Action.LOGIN_FAILED, resource, "A login failed.")
            else:
                await login_limits.succeeded(connection, attempt, now)
                await store.set_last_login(connection, fresh.id, now)
                token = await self._new_session(connection, fresh, now)
                actor = Actor(fresh.id, fresh.username, origin)
                resource = ("user", fresh.id, fresh.username)
                await record(connection, now, actor, Action.LOGIN, resource, f"{fresh.username} logged in.")
        if fresh is None:
            raise NotAuthenticatedError("bad_credentials", "The username or the password is wrong.")
        self._remember(attempt.pair)
        return fresh, token

    def _remember(self, pair: str) -> None:
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known.add(pair)

    async def _new_session(self, connection: AsyncConnection, user: User, now: datetime) -> str:
        jti = uuid4()
        await store.forget_expired_sessions(connection, now)
        await store.add_session(connection, jti, user.id, now + tokens.LIFETIME)
        return tokens.issue(self._secret, user_id=user.id, username=user.username, role=user.role, now=now, jti=jti)

    async def authenticate(self, token: str) -> Principal:
        """Return the principal of a login token or an API token.

        Raises NotAuthenticatedError for an invalid, expired or revoked token.
        """
        if token.startswith(api_tokens.PREFIX):
            return await self._api_tokens.authenticate(token)
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
            if not await store.has_session(connection, claims.jti, user.id):
                raise dead
        return Principal(user.id, user.username, ROLES[user.role], claims.jti, claims.expires_at)

    async def logout(self, principal: Principal, actor: Actor) -> None:
        """End the caller's session in the database, so that its token stays invalid after a restart."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await store.end_session(connection, principal.jti)
            resource = ("user", principal.user_id, principal.username)
            await record(connection, now, actor, Action.LOGOUT, resource, f"{principal.username} logged out.")

    async def change_password(
        self, principal: Principal, current: str, new: str, actor: Actor, *, keep_tokens: bool = True
    ) -> None:
        """Change the caller's password, and end their other sessions; API tokens are revoked unless `keep_tokens`.

        Raises InvalidError for a wrong current password, which counts as a failed login; TooManyRequestsError.
        """
        attempt = Attempt.of(principal.username, actor.origin.ip_address)
        async with self._database.read() as connection:
            await login_limits.check(connection, attempt, await self._database.now(connection))
            user = await store.by_id(connection, principal.user_id)
        place = Place(str(principal.user_id), known=True)
        right = await self._passwords.verify(current, None if user is None else user.password_hash, place)
        new_hash = await self._passwords.hash(new, place) if right else ""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await login_limits.check(connection, attempt, now)
            fresh = await store.by_id(connection, principal.user_id)
            right = right and fresh is not None and user is not None and fresh.password_hash == user.password_hash
            if not right:
                await login_limits.failed(connection, attempt, now)
            else:
                await login_limits.succeeded(connection, attempt, now)
                await store.change(connection, principal.user_id, {"password_hash": new_hash, "updated_at": now})
                ended = await store.end_sessions(connection, principal.user_id, keep=principal.jti)
                resource = ("user", principal.user_id, principal.username)
                sentence = f"{principal.username} changed the password."
                details = {"sessionsEnded": ended}
                if not keep_tokens:
                    details["tokensRevoked"] = await token_store.remove_all(connection, principal.user_id)
                await record(connection, now, actor, Action.PASSWORD_CHANGE, resource, sentence, details)
        if not right:
            raise InvalidError({"currentPassword": "It is not your current password."}, "wrong_password")
