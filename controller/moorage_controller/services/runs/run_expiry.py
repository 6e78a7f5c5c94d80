"""Run expiry: warn before the end of a run, stop runs that are due, mark runs that could not be stopped as overdue."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from moorage_controller.auth.roles import AUTO_STOP
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.runs.transitions import Rules
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as store
from moorage_controller.store.tables import changes
from moorage_controller.store.tables.apps import App, DueApp
from moorage_controller.store.tables.changes import Kind
from moorage_controller.store.tables.operations import Operation

OVERDUE_AFTER = timedelta(seconds=60)
_STOP_GRACE = timedelta(minutes=5)
"""How long a stop may take before its app is overdue: containers have stop grace periods of their own."""
_BATCH_SIZE = 50
"""Rows per transaction; keeps write locks short."""


@dataclass(frozen=True, slots=True)
class ExpirySnapshot:
    """Pending work at `now`: `due` are apps to stop; `next_at` is the time of the next stop, warning or mark."""

    now: datetime
    due: Sequence[DueApp]
    to_warn: bool
    overdue: bool
    next_at: datetime | None


class RunExpiry:
    """Handles runs that reach their deadline."""

    def __init__(self, database: Database, operations: Operations, rules: Rules) -> None:
        self._database = database
        self._operations = operations
        self._rules = rules

    async def poll(self) -> ExpirySnapshot:
        """Read the pending work."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            return ExpirySnapshot(
                now,
                await store.due(connection, now),
                bool(await store.to_warn(connection, now, 1)),
                bool(await store.newly_overdue(connection, now, OVERDUE_AFTER, _STOP_GRACE, 1)),
                await store.next_end(connection, now, OVERDUE_AFTER),
            )

    async def stop(self, due: Sequence[App]) -> Sequence[Operation]:
        """Begin the stops of runs that are over; a run that changed or got another deadline is skipped."""
        begun: list[Operation] = []
        for n in range(0, len(due), _BATCH_SIZE):
            async with self._operations.recording() as (connection, launch):
                now = await self._database.now(connection)
                stops = await self._operations.begin_stops(connection, due[n : n + _BATCH_SIZE], now)
                for operation in stops:
                    launch(operation)
            begun += stops
        return begun

    async def warn(self) -> None:
        """Record a stopping-soon event for runs near their end, once per warning across all controllers."""
        more = True
        while more:
            async with self._database.write() as connection:
                now = await self._database.now(connection)
                found = await store.to_warn(connection, now, _BATCH_SIZE)
                more = len(found) == _BATCH_SIZE
                for app in found:
                    assert app.stop_at is not None
                    await store.change(connection, app.id, {"warn_at": self._rules.next_warning(app.stop_at, now)})
                    if app.status == "running":
                        await changes.note(connection, Kind.STOPPING_SOON, app.id)

    async def mark_overdue(self) -> None:
        """Mark runs as overdue whose stop has not succeeded in time; the stop is still retried."""
        more = True
        while more:
            async with self._database.write() as connection:
                now = await self._database.now(connection)
                found = await store.newly_overdue(connection, now, OVERDUE_AFTER, _STOP_GRACE, _BATCH_SIZE)
                more = len(found) == _BATCH_SIZE
                for app in found:
                    await store.change(connection, app.id, {"overdue": True})
                    message = (
                        f"{app.name} should have been stopped at {app.stop_at:%Y-%m-%d %H:%M:%S} UTC, and isn't yet: "
                        "it is tried again until it is."
                    )
                    details = {"reason": "overdue", "status": app.status}
                    resource = ("app", app.id, app.name)
                    await record(connection, now, AUTO_STOP, Action.STATUS_CHANGE, resource, message, details)
