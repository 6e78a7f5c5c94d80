"""Stops that wait for a host that is away: pages ask for a stop again and again, and one of them has to be enough."""

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
"""A stop that is asked for again within that time after one failed repeats it."""


async def repeats_unreachable(connection: AsyncConnection, app: App, now: datetime) -> bool:
    """Tell whether the newest operation on an app is a stop that failed a moment ago, since its host was away."""
    newest = await store.newest_on(connection, app.id)
    if newest is None or newest.kind != OperationKind.DOWN or newest.finished_at is None:
        return False
    return newest.error_code == HOST_UNREACHABLE and now - newest.finished_at < _REPEATED_WITHIN


class Repeats:
    """How often, and by whom, each stop that waits was asked for again; in memory, since it only counts."""

    def __init__(self) -> None:
        self._by_stop: dict[UUID, Counter[str]] = {}

    def count(self, stop: Operation, actor: Actor) -> None:
        """Count one more request for a stop."""
        self._by_stop.setdefault(stop.id, Counter())[actor.name] += 1

    def forget(self, stop_id: UUID) -> None:
        """Drop what was counted of a stop that has ended."""
        self._by_stop.pop(stop_id, None)

    async def record(self, connection: AsyncConnection, app: App, stop: Operation, now: datetime) -> None:
        """Write one audit entry of all requests that repeated a stop; none where nobody repeated it."""
        asked = self._by_stop.get(stop.id)
        if not asked:
            return
        times = asked.total()
        often = "once" if times == 1 else f"{times} times"
        message = f"The stop of {app.name} was asked for again {often} while it waited for its host."
        details = {"operationId": str(stop.id), "askedAgain": dict(asked)}
        actor = Actor(stop.actor_id, stop.actor)
        await record(connection, now, actor, Action.STOP, ("app", app.id, app.name), message, details)
