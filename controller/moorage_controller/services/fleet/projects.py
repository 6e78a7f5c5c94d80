"""Projects: create, change and delete them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, NotFoundError
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.idempotency import NO_KEY, IdempotentRequest
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import projects as store
from moorage_controller.store.tables.projects import Project


class Projects:
    """Creates, changes and deletes projects."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals

    async def all(self) -> Sequence[Project]:
        """Return all projects by name."""
        async with self._database.read() as connection:
            return await store.all_projects(connection)

    async def get(self, project_id: UUID) -> Project:
        """Return a project. Raises NotFoundError."""
        async with self._database.read() as connection:
            return _found(await store.get(connection, project_id))

    async def create(
        self, name: str, description: str | None, actor: Actor, once: IdempotentRequest[Project] = NO_KEY
    ) -> Project:
        """Create a project."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await once.begin(connection, now)
            project = Project(uuid4(), name, description, now, now)
            await store.add(connection, project)
            resource = ("project", project.id, name)
            await record(connection, now, actor, Action.CREATE, resource, f"Project {name} was made.")
            await once.keep(connection, now, project)
        return project

    async def update(self, project_id: UUID, changes: Mapping[str, Any], actor: Actor) -> Project:
        """Change name or description. Raises NotFoundError."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            old = _found(await store.get(connection, project_id))
            await store.change(connection, project_id, {**changes, "updated_at": now})
            new = _found(await store.get(connection, project_id))
            resource = ("project", project_id, new.name)
            details = {"changed": sorted(changes)}
            await record(connection, now, actor, Action.UPDATE, resource, f"Project {old.name} was changed.", details)
        return new

    async def delete(self, project_id: UUID, actor: Actor) -> None:
        """Delete a project and its apps. Raises NotFoundError; ConflictError if one of its apps runs."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            project = _found(await store.get(connection, project_id))
            apps = await app_store.in_project(connection, project_id)
            busy = next((a for a in apps if a.status != "stopped" or a.run_id is not None), None)
            if busy is not None:
                raise ConflictError("app_running", f"{busy.name} of this project runs: stop it first.")
            for app in apps:
                await app_store.remove(connection, app.id)
            await store.remove(connection, project_id)
            resource = ("project", project_id, project.name)
            details = {"apps": [a.name for a in apps]}
            await record(
                connection, now, actor, Action.DELETE, resource, f"Project {project.name} was removed.", details
            )
        for app in apps:
            self._signals.deadline_moved.emit(app.id)
        for server_id in {a.server_id for a in apps}:
            self._signals.server_changed.emit(server_id)


def _found(project: Project | None) -> Project:
    if project is None:
        raise NotFoundError("project_not_found", "There is no project of that id.")
    return project
