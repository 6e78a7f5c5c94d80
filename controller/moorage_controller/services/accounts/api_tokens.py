"""Personal API tokens for programs, with at most the rights of their user."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from moorage_controller.auth.roles import Actor, Principal, Role, Scope
from moorage_controller.errors import InvalidError, NotAuthenticatedError, NotFoundError
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import api_tokens as store
from moorage_controller.store.tables import users as user_store
from moorage_controller.store.tables.api_tokens import ApiToken

PREFIX = "moorage_"
"""Distinguishes an API token from a login token, and lets secret scanners find a committed one."""

ROLES = {"admin": Role.ADMIN, "user": Role.USER}
_NOTED_EVERY = timedelta(minutes=1)
_RANDOM_BYTES = 32


def _digest(secret: str) -> str:
    # No salt or key stretching: 256 random bits can't be guessed, and every request computes a digest.
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


class ApiTokens:
    """Creates, lists, revokes and authenticates API tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[UUID, datetime] = {}

    async def all(self, principal: Principal) -> Sequence[ApiToken]:
        """Return the caller's tokens, sorted by name."""
        async with self._database.read() as connection:
            return await store.of_user(connection, principal.user_id)

    async def of_user(self, user_id: UUID) -> Sequence[ApiToken]:
        """Return another user's tokens for an admin, sorted by name. Raises NotFoundError."""
        async with self._database.read() as connection:
            if await user_store.by_id(connection, user_id) is None:
                raise NotFoundError("user_not_found", "There is no user of that id.")
            return await store.of_user(connection, user_id)

    async def create(
        self, principal: Principal, name: str, scopes: Sequence[str], expires_at: datetime | None, actor: Actor
    ) -> tuple[ApiToken, str]:
        """Create a token; return it and its secret, which is not stored. Raises InvalidError, NotAuthenticatedError."""
        if Scope.ADMIN.name.lower() in scopes and principal.role < Role.ADMIN:
            raise InvalidError({"scopes": "Only an admin's token can have the scope admin."})
        secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            if expires_at is not None and expires_at <= now:
                raise InvalidError({"expiresAt": "It must be in the future (epoch milliseconds)."})
            # A user who is demoted or deleted concurrently must not get a token.
            user = await user_store.by_id(connection, principal.user_id)
            if user is None or not await user_store.has_session(connection, principal.jti, principal.user_id):
                raise _dead()
            words = ",".join(sorted(set(scopes), key=lambda word: Scope[word.upper()]))
            token = ApiToken(uuid4(), principal.user_id, name, _digest(secret), words, expires_at, None, now)
            await store.add(connection, token)
            details = {"scopes": words.split(","), "expiresAt": None if expires_at is None else expires_at.isoformat()}
            sentence = f"{principal.username} made the API token {name}."
            await record(connection, now, actor, Action.TOKEN_CREATE, ("token", token.id, name), sentence, details)
        return token, secret

    async def revoke(self, principal: Principal, token_id: UUID, actor: Actor) -> None:
        """Revoke one of the caller's tokens; an admin may revoke any user's. Raises NotFoundError."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            token = await store.get(connection, token_id)
            owner = None if token is None else await user_store.by_id(connection, token.user_id)
            if token is None or owner is None or not (owner.id == principal.user_id or principal.may_administer):
                raise NotFoundError("token_not_found", "You have no API token of that id.")
            await store.remove(connection, token_id)
            whose = "" if owner.id == principal.user_id else f" of {owner.username}"
            sentence = f"{principal.username} revoked the API token {token.name}{whose}."
            details = {"owner": owner.username} if whose else None
            await record(
                connection, now, actor, Action.TOKEN_REVOKE, ("token", token_id, token.name), sentence, details
            )
        self._noted.pop(token_id, None)

    async def authenticate(self, secret: str) -> Principal:
        """Return the principal of a token secret. Raises NotAuthenticatedError."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            token = await store.by_digest(connection, _digest(secret))
            if token is None or (token.expires_at is not None and token.expires_at <= now):
                raise _dead()
            user = await user_store.by_id(connection, token.user_id)
            if user is None or not user.is_active:
                raise _dead()
        await self._note_use(token, now)
        scope = max(Scope[word.upper()] for word in token.scopes.split(","))
        return Principal(user.id, user.username, ROLES[user.role], token.id, token.expires_at, scope)

    async def _note_use(self, token: ApiToken, now: datetime) -> None:
        """Store the time of last use at most once a minute, so that not every request writes."""
        last = max(filter(None, (self._noted.get(token.id), token.last_used_at)), default=None)
        if last is not None and now - last < _NOTED_EVERY:
            return
        # Before the write, so that concurrent requests write once.
        self._noted = {one: when for one, when in self._noted.items() if now - when < _NOTED_EVERY} | {token.id: now}
        async with self._database.write() as connection:
            await store.note_use(connection, token.id, now)


def _dead() -> NotAuthenticatedError:
    return NotAuthenticatedError("bad_token", "The token is invalid, expired or revoked: log in again.")
