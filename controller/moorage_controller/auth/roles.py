"""Roles and scopes, and the identity behind a request."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from uuid import UUID


class Role(IntEnum):
    """The least role that a route requires; a higher role includes the lower ones."""

    NOBODY = 0
    USER = 1
    ADMIN = 2


class Scope(IntEnum):
    """The token scope that a route requires besides the user's role; higher includes lower.

    The first three are scopes of API tokens. A login has SESSION, for actions that an API token must never perform,
    such as creating another token.
    """

    READ = 1
    OPERATE = 2
    ADMIN = 3
    SESSION = 4


@dataclass(frozen=True, slots=True)
class Principal:
    """The user of a valid token. `jti` is that of a login, or an API token's id; `expires_at` None means never."""

    user_id: UUID
    username: str
    role: Role
    jti: UUID
    expires_at: datetime | None
    scope: Scope = Scope.SESSION

    @property
    def may_administer(self) -> bool:
        """Whether admin actions are allowed: the user is an admin, and the token's scope is ADMIN or higher."""
        return self.role is Role.ADMIN and self.scope >= Scope.ADMIN


@dataclass(frozen=True, slots=True)
class Origin:
    """The client address and user agent of a request, for the audit log."""

    ip_address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor in the audit log: a user with an origin, or a part of the controller (no id)."""

    user_id: UUID | None
    name: str
    origin: Origin = Origin()


AUTO_STOP = Actor(None, "auto-stop")
DEAD_MAN = Actor(None, "agent")
"""A host's agent, which stops apps that no controller has stopped in time."""
OBSERVER = Actor(None, "observer")
