"""Idempotency keys: a request with an `Idempotency-Key` creates its resource once, however often it is sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import InvalidError
from moorage_controller.store.tables import idempotency as store

T = TypeVar("T")


class ReplayError(Exception):
    """The request was answered before and is not repeated; `reply` is the body of the first response."""

    def __init__(self, reply: str) -> None:
        super().__init__("answered before")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with a key. `fingerprints` cover method, path and body, one per encryption key, current first."""

    user_id: UUID
    key: str
    fingerprints: Sequence[str]


@dataclass(frozen=True, slots=True)
class IdempotentRequest(Generic[T]):
    """Stores the response in the transaction that creates the resource, so that both are committed or neither.

    A service calls `begin` first and `keep` last in that transaction. `show` renders the response body, without
    secrets, from the created resource. Without a request nothing is stored.
    """

    request: KeyedRequest | None
    show: Callable[[T], str]

    async def begin(self, connection: AsyncConnection, now: datetime) -> None:
        """Wait for requests with the same key. Raises ReplayError; InvalidError if a different request used the key."""
        if self.request is None:
            return
        kept = await store.take(connection, self.request.user_id, self.request.key, now)
        if kept is None:
            return
        if kept.fingerprint not in self.request.fingerprints:
            sentence = "It was sent before with another request: send each new request under a key of its own."
            raise InvalidError({"Idempotency-Key": sentence}, "idempotency_key_reused")
        raise ReplayError(kept.reply)

    async def keep(self, connection: AsyncConnection, now: datetime, made: T) -> None:
        """Store the response for the created resource."""
        if self.request is None:
            return
        user_id, key, fingerprint = self.request.user_id, self.request.key, self.request.fingerprints[0]
        await store.keep(connection, store.KeptReply(user_id, key, fingerprint, self.show(made), now))


NO_KEY: IdempotentRequest[Any] = IdempotentRequest(None, str)
"""No key: every request creates a resource."""
