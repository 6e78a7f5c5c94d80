"""Stops that wait for an unavailable host: clients repeat a stop request many times, and one stop is enough."""

from collections import Counter
from datetime import datetime, timedelta
from uuid import UUID

from moorage_common.docker.states import OperationKind
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import HOST_UNREACHABLE
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation

_REPEATED_WITHIN = timedelta(minutes=10)
"""A stop requested within this time after a failed one counts as its repetition."""


async def repeats_unreachable(connection: AsyncConnection, app: App, now: datetime) -> bool:
    """Return whether the newest operation on an app is a stop that recently failed on an unreachable host."""
    newest = await store.newest_on(connection, app.id)
    if newest is None or newest.kind != OperationKind.DOWN or newest.finished_at is None:
        return False
    return newest.error_code == HOST_UNREACHABLE and now - newest.finished_at < _REPEATED_WITHIN


class Repeats:
    """Counts repeated requests per waiting stop and actor. In memory only, as they serve the audit log alone."""

    def __init__(self) -> None:
        self._by_stop: dict[UUID, Counter[str]] = {}

    def count(self, stop: Operation, actor: Actor) -> None:
        """Count one more request for a stop."""
        self._by_stop.setdefault(stop.id, Counter())[actor.name] += 1

    def forget(self, stop_id: UUID) -> None:
        """Drop the count of a stop that has ended."""
        self._by_stop.pop(stop_id, None)

    async def record(self, connection: AsyncConnection, app: App, stop: Operation, now: datetime) -> None:
        """Write one audit entry for all repeated requests of a stop, if there are any."""
        asked = self._by_stop.get(stop.id)
        if not asked:
            return
        times = asked.total()
        often = "once" if times == 1 else f"{times} times"
        message = f"The stop of {app.name} was asked for again {often} while it waited for its host."
        details = {"operationId": str(stop.id), "askedAgain": dict(asked)}
        actor = Actor(stop.actor_id, stop.actor)
        await record(connection, now, actor, Action.STOP, ("app", app.id, app.name), message, details)
