"""One request creates one thing, however often it is sent: what `Idempotency-Key` promises."""

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
    """The request was answered before, and nothing is done again; `reply` is the body it got."""

    def __init__(self, reply: str) -> None:
        super().__init__("answered before")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with a key. `fingerprints` are of its method, path and body, one a key of ours, the newest first."""

    user_id: UUID
    key: str
    fingerprints: Sequence[str]


@dataclass(frozen=True, slots=True)
class IdempotentRequest(Generic[T]):
    """What a service calls first and last in the transaction that creates: so thing and reply are there, or neither.

    `show` makes the reply's body, without secrets, of what was created. Without a request nothing is kept.
    """

    request: KeyedRequest | None
    show: Callable[[T], str]

    async def begin(self, connection: AsyncConnection, now: datetime) -> None:
        """Wait for the same key's other requests. Raises RepeatedError; InvalidError where the key was another's."""
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
        """Keep the reply of what was created."""
        if self.request is None:
            return
        user_id, key, fingerprint = self.request.user_id, self.request.key, self.request.fingerprints[0]
        await store.keep(connection, store.KeptReply(user_id, key, fingerprint, self.show(made), now))


NO_KEY: IdempotentRequest[Any] = IdempotentRequest(None, str)
"""Creates each time it is asked to."""
