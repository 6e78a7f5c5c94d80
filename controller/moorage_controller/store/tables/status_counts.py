"""Counts for metrics, read in one transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.schema import apps, controllers, operations
from moorage_controller.store.tables import enrollment, servers
from moorage_controller.store.tables.servers import Server

_IN_FLIGHT = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts at one time.

    `operations` in flight by kind and state; `drivers`: operations in flight by controller; `apps` by status;
    `overdue_since`: the earliest deadline of an overdue run (aware, UTC), or None; `certificates`: the PEMs of all
    currently enrolled agents.
    """

    operations: Mapping[tuple[str, str], int]
    drivers: Mapping[UUID | None, int]
    controllers: frozenset[UUID]
    apps: Mapping[str, int]
    overdue: int
    overdue_since: datetime | None
    servers: Sequence[Server]
    certificates: Sequence[str]


async def take(connection: AsyncConnection) -> Counts:
    """Read all counts from the connection's snapshot."""
    columns = (operations.c.kind, operations.c.state, operations.c.driver)
    in_flight = select(*columns, func.count()).where(operations.c.state.in_(_IN_FLIGHT)).group_by(*columns)
    by_state: Counter[tuple[str, str]] = Counter()
    by_driver: Counter[UUID | None] = Counter()
    for kind, state, driver, count in await connection.execute(in_flight):
        by_state[kind, state] += count
        by_driver[driver] += count
    by_status = await connection.execute(select(apps.c.status, func.count()).group_by(apps.c.status))
    late = select(func.count(), func.min(apps.c.stop_at)).where(apps.c.overdue)
    overdue, overdue_since = (await connection.execute(late)).one()
    return Counts(
        by_state,
        by_driver,
        frozenset((await connection.execute(select(controllers.c.id))).scalars()),
        {status: count for status, count in by_status},  # noqa: C416 - rows are no tuples to mypy
        overdue,
        overdue_since,
        await servers.all_servers(connection),
        [each.certificate for each in await enrollment.enrollments_in_force(connection)],
    )
