"""The `projects` table: groups of apps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.schema import projects


@dataclass(frozen=True, slots=True)
class Project:
    """A row of `projects`."""

    id: UUID
    name: str
    description: str | None
    created_at: datetime
    updated_at: datetime


async def add(connection: AsyncConnection, project: Project) -> None:
    """Insert a project."""
    await connection.execute(insert(projects).values(to_values(project)))


async def get(connection: AsyncConnection, project_id: UUID) -> Project | None:
    """Return a project by ID, or None."""
    row = (await connection.execute(select(*columns(Project, projects)).where(projects.c.id == project_id))).first()
    return None if row is None else to_dataclass(Project, row)


async def all_projects(connection: AsyncConnection) -> Sequence[Project]:
    """Return all projects, sorted by name."""
    rows = await connection.execute(select(*columns(Project, projects)).order_by(projects.c.name, projects.c.id))
    return [to_dataclass(Project, row) for row in rows]


async def change(connection: AsyncConnection, project_id: UUID, values: Mapping[str, Any]) -> bool:
    """Set columns of a project; return False if it doesn't exist."""
    return (await connection.execute(update(projects).where(projects.c.id == project_id).values(values))).rowcount == 1


async def remove(connection: AsyncConnection, project_id: UUID) -> bool:
    """Delete a project and its apps."""
    return (await connection.execute(delete(projects).where(projects.c.id == project_id))).rowcount == 1
