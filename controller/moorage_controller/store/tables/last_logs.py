"""The `last_logs` table: last log lines from an app's last stop, one row per service; deleted with the app."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass
from moorage_controller.store.schema import apps, last_logs


@dataclass(frozen=True, slots=True)
class ServiceLog:
    """A row of `last_logs`; `lines` is a JSON list of [time, container, text]."""

    service: str
    stopped_at: datetime
    lines: str


async def replace(connection: AsyncConnection, app_id: UUID, stopped_at: datetime, logs: Mapping[str, str]) -> None:
    """Replace the lines of an earlier stop. Raises IntegrityError if the app was deleted."""
    await connection.execute(delete(last_logs).where(last_logs.c.app_id == app_id))
    rows = [{"app_id": app_id, "service": name, "stopped_at": stopped_at, "lines": logs[name]} for name in logs]
    await connection.execute(insert(last_logs), rows)


async def of_stopped(connection: AsyncConnection, app_id: UUID) -> Sequence[ServiceLog]:
    """Return the stored lines of an app if it is stopped; empty otherwise."""
    query = select(*columns(ServiceLog, last_logs)).join(apps, apps.c.id == last_logs.c.app_id)
    query = query.where(apps.c.id == app_id, apps.c.status == "stopped").order_by(last_logs.c.service)
    return [to_dataclass(ServiceLog, row) for row in await connection.execute(query)]


async def remove_old(connection: AsyncConnection, before: datetime) -> None:
    """Delete lines of stops before `before`."""
    await connection.execute(delete(last_logs).where(last_logs.c.stopped_at < before))
