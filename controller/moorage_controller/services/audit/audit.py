"""Audit entries, written in the transaction of the change they describe."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import structlog
from moorage_common.untrusted import clean_line
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import AUTO_STOP, DEAD_MAN, Actor
from moorage_controller.store.tables import audit as store
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation

_MOST_NAME, _MOST_TEXT, _MOST_AGENT, _MOST_ADDRESS = 255, 2000, 500, 45
"""Maximum lengths in characters."""

log = structlog.get_logger(__name__)


class Action(StrEnum):
    """Audit actions of the API."""

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
    """Append an entry. `resource` is type, id and name; `message` a sentence; `details` never holds a secret.

    Text from callers and hosts is sanitized here, as entries are read on terminals.
    """
    kind, resource_id, resource_name = resource
    address, agent = actor.origin.ip_address, actor.origin.user_agent
    entry = store.AuditEntry(
        id=uuid4(),
        user_id=actor.user_id,
        username=clean_line(actor.name, _MOST_NAME),
        action=action.value,
        resource_type=kind,
        resource_id=resource_id,
        resource_name=None if resource_name is None else clean_line(resource_name, _MOST_NAME),
        message=clean_line(message, _MOST_TEXT),
        details=_cleaned(details),
        ip_address=None if address is None else clean_line(address, _MOST_ADDRESS),
        user_agent=None if agent is None else clean_line(agent, _MOST_AGENT) or None,
        created_at=now,
    )
    await store.add(connection, entry)
    _log_after_commit(connection, entry)


def _cleaned(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return clean_line(value, _MOST_TEXT)
    if isinstance(value, Mapping):
        return {clean_line(str(name), _MOST_NAME): _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, list | tuple) else value


def _log_after_commit(connection: AsyncConnection, entry: store.AuditEntry) -> None:
    """Log the entry after the commit too, as logs may be stored where nobody can change them."""

    def tell(_: Connection) -> None:
        log.info(
            "audit",
            action=entry.action,
            username=entry.username,
            resource_type=entry.resource_type,
            resource_id=None if entry.resource_id is None else str(entry.resource_id),
            resource_name=entry.resource_name,
            message=entry.message,
            data=entry.details,
            address=entry.ip_address,
        )

    event.listen(connection.sync_connection, "commit", tell)


async def record_auto_stop(connection: AsyncConnection, app: App, operation: Operation, now: datetime) -> None:
    """Record the auto-stop of a run at its deadline; `app` is its state before the stop."""
    minutes = operation.run_timeout
    if app.run_began_at is not None and app.stop_at is not None:
        # Extensions included.
        minutes = round((app.stop_at - app.run_began_at) / timedelta(minutes=1))
    # The `data` documented in docs/guide.md; `by` and `secondsLate` only in exceptional cases.
    details: dict[str, object] = {"reason": "timeout", "timeout": minutes}
    message = f"{app.name} was stopped: its {minutes} {'minute was' if minutes == 1 else 'minutes were'} over."
    if operation.actor == DEAD_MAN.name:
        details["by"] = DEAD_MAN.name
        message += " Its host's agent did it, since no controller had."
    if app.overdue and app.stop_at is not None:
        details["secondsLate"] = round((now - app.stop_at).total_seconds())
        message += f" That was {details['secondsLate']} seconds late."
    await record(connection, now, AUTO_STOP, Action.AUTO_STOP, ("app", app.id, app.name), message, details)
