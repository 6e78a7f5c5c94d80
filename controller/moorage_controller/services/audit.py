"""Audit entries, written in the transaction of the change they tell of."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import Actor
from moorage_controller.store import audit as store


class Action(StrEnum):
    """The API's audit actions that are written today."""

    LOGIN = "LOGIN"
    LOGIN_FAILED = "LOGIN_FAILED"
    LOGOUT = "LOGOUT"
    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    START = "START"
    STOP = "STOP"
    RESTART = "RESTART"
    EXTEND = "EXTEND"
    AUTO_STOP = "AUTO_STOP"
    CANCEL = "CANCEL"
    HOST_KEY_ACCEPTED = "HOST_KEY_ACCEPTED"
    ENROLL = "ENROLL"
    AGENT_INSTALL = "AGENT_INSTALL"
    AGENT_UNINSTALL = "AGENT_UNINSTALL"
    TOKEN_CREATE = "TOKEN_CREATE"  # noqa: S105 - an action's name, no secret
    TOKEN_REVOKE = "TOKEN_REVOKE"  # noqa: S105 - same
    PASSWORD_CHANGE = "PASSWORD_CHANGE"  # noqa: S105 - same
    STATUS_CHANGE = "STATUS_CHANGE"


async def record(
    connection: AsyncConnection,
    now: datetime,
    actor: Actor,
    action: Action,
    resource: tuple[str, UUID | None, str | None],
    message: str,
    details: dict[str, Any] | None = None,
) -> None:
    """Append an entry. `resource` is type, id and name; `message` a sentence; `details` never holds a secret."""
    kind, resource_id, resource_name = resource
    await store.add(
        connection,
        store.AuditEntry(
            id=uuid4(),
            user_id=actor.user_id,
            username=actor.name,
            action=action.value,
            resource_type=kind,
            resource_id=resource_id,
            resource_name=resource_name,
            message=message,
            details=details,
            ip_address=actor.origin.ip_address,
            user_agent=actor.origin.user_agent,
            created_at=now,
        ),
    )
