"""Roles, and who a request comes from."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from uuid import UUID


class Role(IntEnum):
    """What a route asks for at least; higher may do all that lower may."""

    NOBODY = 0
    USER = 1
    ADMIN = 2


class Scope(IntEnum):
    """What a route asks of a token, beside the user's role; higher includes lower.

    The first three are scopes of API tokens. A login has SESSION: what an API token must never do, such as making
    another one.
    """

    READ = 1
    OPERATE = 2
    ADMIN = 3
    SESSION = 4


@dataclass(frozen=True, slots=True)
class Principal:
    """The user behind a valid token: `jti` is a login's, or an API token's id; `expires_at` None: never."""

    user_id: UUID
    username: str
    role: Role
    jti: UUID
    expires_at: datetime | None
    scope: Scope = Scope.SESSION

    @property
    def may_administer(self) -> bool:
        """Whether he may do here and now what an admin may: an admin, and not by a token of a lower scope."""
        return self.role is Role.ADMIN and self.scope >= Scope.ADMIN


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, for the audit log."""

    ip_address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: a user at some address, or a part of the controller (no id)."""

    user_id: UUID | None
    name: str
    origin: Origin = Origin()


AUTO_STOP = Actor(None, "auto-stop")
DEAD_MAN = Actor(None, "agent")
"""A host's agent, which stops what no controller has stopped in time."""
OBSERVER = Actor(None, "observer")
