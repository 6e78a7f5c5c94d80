"""The `apps` table: apps and their runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from posixpath import basename
from typing import Any
from uuid import UUID

from sqlalchemy import Delete, Select, Update, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import apps, operations, servers
from moorage_controller.store.tables import changes
from moorage_controller.store.tables.changes import Kind

IN_FLIGHT = ("queued", "running")


@dataclass(frozen=True, slots=True)
class App:
    """A row of `apps`.

    `auto_stop_timeout` and `run_timeout` are in minutes. `run_id`, `run_timeout` and `stop_at` form the run: an app
    with a running container has one; a start in progress has a provisional one. `run_began_at` is the start of the
    timeout, `warn_at` the time of the next warning; `overdue`: its stop has not succeeded in time. `compose_files` are
    relative to `cd_path`; if empty, Compose uses its default files.
    """

    id: UUID
    name: str
    project_id: UUID
    server_id: UUID
    cd_path: str
    app_url: str | None
    auto_stop_timeout: int
    status: str
    started_at: datetime | None
    domain: str
    health: str
    observed_at: datetime | None
    last_error: str | None
    health_detail: str | None
    last_result: str | None
    project_name: str | None
    project_directory: str | None
    run_id: UUID | None
    run_timeout: int | None
    stop_at: datetime | None
    run_began_at: datetime | None
    deadline_number: int
    warn_at: datetime | None
    overdue: bool
    created_at: datetime
    updated_at: datetime
    compose_files: tuple[str, ...] = ()

    @property
    def age(self) -> tuple[datetime, UUID]:
        """Sort key by creation time."""
        return self.created_at, self.id


@dataclass(frozen=True, slots=True)
class AppView:
    """An app with the ID of its operation in flight, as shown by the API."""

    app: App
    operation_id: UUID | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The location columns of an app."""

    id: UUID
    name: str
    cd_path: str
    project_name: str | None
    project_directory: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DueApp:
    """An app whose run has reached its deadline.

    `online` is False if its server is known to be offline; `kept`: its agent may have stopped it by itself.
    """

    app: App
    online: bool
    kept: bool


def _views() -> Select[Any]:
    in_flight = (operations.c.app_id == apps.c.id) & operations.c.state.in_(IN_FLIGHT)
    return select(*columns(App, apps), operations.c.id).outerjoin(operations, in_flight)


def _view(row: Any) -> AppView:  # noqa: ANN401 - a row of _views()
    return AppView(App(*row[:-1]), row[-1])


async def add(connection: AsyncConnection, app: App) -> None:
    """Insert an app. Raises IntegrityError if its project or server doesn't exist."""
    await connection.execute(insert(apps).values(to_values(app)))
    await changes.note(connection, Kind.APP, app.id)


async def get(connection: AsyncConnection, app_id: UUID) -> App | None:
    """Return an app by ID, or None."""
    row = (await connection.execute(select(*columns(App, apps)).where(apps.c.id == app_id))).first()
    return None if row is None else to_dataclass(App, row)


async def view(connection: AsyncConnection, app_id: UUID) -> AppView | None:
    """Return an app by ID with its operation in flight, or None."""
    row = (await connection.execute(_views().where(apps.c.id == app_id))).first()
    return None if row is None else _view(row)


async def views(connection: AsyncConnection, app_ids: Collection[UUID]) -> Sequence[AppView]:
    """Return the existing apps of those IDs, each with its operation in flight."""
    return [_view(row) for row in await connection.execute(_views().where(apps.c.id.in_(app_ids)))]


async def all_views(connection: AsyncConnection) -> Sequence[AppView]:
    """Return all apps, sorted by name, each with its operation in flight."""
    return [_view(row) for row in await connection.execute(_views().order_by(apps.c.name, apps.c.id))]


async def on_server(connection: AsyncConnection, server_id: UUID) -> Sequence[App]:
    """Return the apps of a server."""
    rows = await connection.execute(select(*columns(App, apps)).where(apps.c.server_id == server_id))
    return [to_dataclass(App, row) for row in rows]


async def neighbours(connection: AsyncConnection, app: App, directories: Collection[str]) -> Sequence[Neighbour]:
    """Return other apps of the same server that may share a directory or Compose project name, oldest first."""
    written = [apps.c.cd_path.contains(basename(path), autoescape=True) for path in directories]
    named = apps.c.project_name.in_([app.project_name] if app.project_name is not None else [])
    near = or_(apps.c.project_directory.in_(directories), named, *written)
    query = select(*columns(Neighbour, apps)).where(apps.c.server_id == app.server_id, apps.c.id != app.id, near)
    rows = await connection.execute(query.order_by(apps.c.created_at, apps.c.id))
    return [to_dataclass(Neighbour, row) for row in rows]


async def in_project(connection: AsyncConnection, project_id: UUID) -> Sequence[App]:
    """Return the apps of a project."""
    rows = await connection.execute(select(*columns(App, apps)).where(apps.c.project_id == project_id))
    return [to_dataclass(App, row) for row in rows]


async def take_number(connection: AsyncConnection, app_id: UUID, number: int) -> None:
    """Set only an app's deadline number; it is not visible in the API, so no change is recorded."""
    await connection.execute(update(apps).where(apps.c.id == app_id).values(deadline_number=number))


async def due(connection: AsyncConnection, now: datetime) -> Sequence[DueApp]:
    """Return apps past their deadline without an operation in flight, earliest deadline first."""
    busy = select(operations.c.app_id).where(operations.c.state.in_(IN_FLIGHT), operations.c.app_id.is_not(None))
    query = (
        select(*columns(App, apps), servers.c.status, servers.c.keeps_deadlines)
        .join(servers, servers.c.id == apps.c.server_id)
        .where(apps.c.stop_at <= now, apps.c.id.not_in(busy))
        .order_by(apps.c.stop_at)
    )
    rows = await connection.execute(query)
    return [DueApp(App(*row[:-2]), online=row[-2] != "offline", kept=row[-1]) for row in rows]


async def to_warn(connection: AsyncConnection, now: datetime, most: int) -> Sequence[App]:
    """Return up to `most` apps for which a warning is due."""
    query = select(*columns(App, apps)).where(apps.c.warn_at <= now, apps.c.stop_at > now).order_by(apps.c.warn_at)
    return [to_dataclass(App, row) for row in await connection.execute(query.limit(most))]


async def newly_overdue(
    connection: AsyncConnection, now: datetime, grace: timedelta, stop_grace: timedelta, most: int
) -> Sequence[App]:
    """Return up to `most` apps that are past their deadline by `grace` and not marked as overdue yet.

    Apps with an operation in flight within its own time are excluded: a start or restart until its limit, a stop for
    `stop_grace`.
    """
    at_work = select(operations.c.app_id).where(
        operations.c.state.in_(IN_FLIGHT),
        operations.c.app_id.is_not(None),
        case(
            (operations.c.kind == "down", operations.c.created_at > now - stop_grace),
            else_=operations.c.deadline_at > now,
        ),
    )
    late = (apps.c.stop_at <= now - grace, apps.c.overdue.is_(False), apps.c.id.not_in(at_work))
    query = select(*columns(App, apps)).where(*late)
    return [to_dataclass(App, row) for row in await connection.execute(query.order_by(apps.c.stop_at).limit(most))]


async def next_end(connection: AsyncConnection, after: datetime, grace: timedelta) -> datetime | None:
    """Return the next time after `after` of a deadline or warning, or of an overdue mark, `grace` after a deadline."""
    busy = select(operations.c.app_id).where(operations.c.state.in_(IN_FLIGHT), operations.c.app_id.is_not(None))
    # The end of an operation wakes the waiter anyway.
    not_yet_overdue = (apps.c.stop_at <= after, apps.c.overdue.is_(False), apps.c.id.not_in(busy))
    query = select(
        select(func.min(apps.c.stop_at)).where(apps.c.stop_at > after).scalar_subquery(),
        select(func.min(apps.c.warn_at)).where(apps.c.warn_at > after).scalar_subquery(),
        select(func.min(apps.c.stop_at)).where(*not_yet_overdue).scalar_subquery(),
    )
    stop_at, warn_at, ended = (await connection.execute(query)).one()
    moments = (stop_at, warn_at, None if ended is None else ended + grace)
    return min((moment for moment in moments if moment is not None), default=None)


async def shift_runs(connection: AsyncConnection, by: timedelta) -> int:
    """Shift all times of all runs after a clock jump; return the number of runs."""
    moments = (apps.c.started_at, apps.c.run_began_at, apps.c.stop_at, apps.c.warn_at)
    rows = (await connection.execute(select(apps.c.id, *moments).where(apps.c.run_id.is_not(None)))).all()
    for app_id, *times in rows:
        values = {c.name: None if time is None else time + by for c, time in zip(moments, times, strict=True)}
        await change(connection, app_id, values)
    return len(rows)


async def change(connection: AsyncConnection, app_id: UUID, values: Mapping[str, Any]) -> bool:
    """Set columns of an app; return False if it doesn't exist."""
    return await _noted(connection, app_id, update(apps).where(apps.c.id == app_id).values(values))


async def change_run(
    connection: AsyncConnection, app_id: UUID, run_id: UUID | None, stop_at: datetime | None, values: Mapping[str, Any]
) -> bool:
    """Set columns if run and deadline are unchanged (compare-and-set); return False otherwise."""
    same = (
        apps.c.id == app_id,
        apps.c.run_id.is_not_distinct_from(run_id),
        apps.c.stop_at.is_not_distinct_from(stop_at),
    )
    return await _noted(connection, app_id, update(apps).where(*same).values(values))


async def still_due(connection: AsyncConnection, due: Sequence[App]) -> Sequence[App]:
    """Return the apps whose run and deadline are unchanged and that have no operation in flight."""
    busy = select(operations.c.app_id).where(operations.c.state.in_(IN_FLIGHT), operations.c.app_id.is_not(None))
    query = select(apps.c.id, apps.c.run_id, apps.c.stop_at)
    rows = await connection.execute(query.where(apps.c.id.in_([app.id for app in due]), apps.c.id.not_in(busy)))
    same = {tuple(row) for row in rows}
    return [app for app in due if (app.id, app.run_id, app.stop_at) in same]


async def mark_stopping(connection: AsyncConnection, app_ids: Sequence[UUID], now: datetime) -> None:
    """Set the status of apps to stopping."""
    if app_ids:
        values = {"status": "stopping", "updated_at": now}
        await connection.execute(update(apps).where(apps.c.id.in_(app_ids)).values(values))
        await changes.note_all(connection, Kind.APP, app_ids)


async def remove(connection: AsyncConnection, app_id: UUID) -> bool:
    """Delete an app."""
    return await _noted(connection, app_id, delete(apps).where(apps.c.id == app_id))


async def _noted(connection: AsyncConnection, app_id: UUID, statement: Update | Delete) -> bool:
    done = (await connection.execute(statement)).rowcount == 1
    if done:
        await changes.note(connection, Kind.APP, app_id)
    return done
