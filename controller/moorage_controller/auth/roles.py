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


@dataclass(frozen=True, slots=True)
class Principal:
    """The user behind a valid token."""

    user_id: UUID
    username: str
    role: Role
    jti: UUID
    expires_at: datetime


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
OBSERVER = Actor(None, "observer")
