"""The ends of runs: people are warned, what is due is stopped, and what could not be stopped is said to be overdue."""

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
"""How long a stop may be at work until its app is called overdue: containers have grace periods of their own."""
_BATCH_SIZE = 50
"""How many are written down in one transaction: others who write wait for that long."""


@dataclass(frozen=True, slots=True)
class ExpirySnapshot:
    """What is to be done at a moment: `due` is to be stopped; `next_at` is the next moment at which there is more."""

    now: datetime
    due: Sequence[DueApp]
    to_warn: bool
    overdue: bool
    next_at: datetime | None


class RunExpiry:
    """Decides about runs that end by themselves."""

    def __init__(self, database: Database, operations: Operations, rules: Rules) -> None:
        self._database = database
        self._operations = operations
        self._rules = rules

    async def look(self) -> ExpirySnapshot:
        """Return what there is to do now."""
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
        """Begin the stops of runs that are over, of each only if it still is that run with that deadline."""
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
        """Tell people that runs end soon, each once a deadline and moment, whichever controller does."""
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
        """Say of runs that they should have been stopped by now; it is tried on until they are."""
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
