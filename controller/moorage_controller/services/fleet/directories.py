"""App directories: keep them distinct, as two apps in one would show, and stop, each other's containers."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from posixpath import normpath
from typing import Any
from uuid import UUID

from moorage_common.docker.states import Project
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import ConflictError, HostUnreachableError
from moorage_controller.hosts.transport import AppObservation, ContactLostError, HostApp, HostRefusedError, Hosts
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.apps import App, Neighbour

_REQUEST_SECONDS = 2.0

GONE = "directory_missing"
"""Problem code of an app whose directory doesn't exist on its host."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Answers of the hosts for an app that moves: project columns read in the new directory, and the old one if gone.

    `gone` is set if the host reports the old directory as missing while the app runs, so its files are unknown.
    """

    seen: Mapping[str, Any]
    gone: str | None


class Directories:
    """Queries hosts about a directory before an app uses it."""

    def __init__(self, database: Database, hosts: Hosts) -> None:
        self._database = database
        self._hosts = hosts

    async def read(self, server_id: UUID, app: HostApp) -> Mapping[str, Any]:
        """Return the Compose project in a directory as app columns; empty without an answer within two seconds."""
        seen = await self._observe(server_id, app)
        project: Project | None = None if seen is None else seen.project
        return {} if project is None else {"project_name": project.name, "project_directory": project.directory}

    async def read_new(self, app_id: UUID, changes: Mapping[str, Any]) -> Moved | None:
        """Return the hosts' answers on the directory that changes move an app to; None if it doesn't move."""
        async with self._database.read() as connection:
            app = await store.get(connection, app_id)
        if app is None or not is_moved(app, changes):
            return None
        new = replace(app, **{key: changes[key] for key in ("server_id", "cd_path", "compose_files") if key in changes})
        seen = await self.read(new.server_id, HostApp(new.cd_path, compose_files=new.compose_files))
        gone = app.status == "running" and new.server_id == app.server_id and await self._is_gone(app)
        return Moved(seen, app.cd_path if gone else None)

    async def _is_gone(self, app: App) -> bool:
        seen = await self._observe(app.server_id, HostApp(app.cd_path))
        return seen is not None and seen.problem_code == GONE

    async def _observe(self, server_id: UUID, app: HostApp) -> AppObservation | None:
        async with self._database.read() as connection:
            server = await server_store.get(connection, server_id)
        if server is None or server.status != "online":
            return None
        with suppress(HostUnreachableError, HostRefusedError, ContactLostError, TimeoutError):
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await self._hosts.transport(server).observe(app)
        return None


def is_moved(app: App, changes: Mapping[str, Any]) -> bool:
    """Return whether changes move an app to another server or directory."""
    return any(changes.get(key, getattr(app, key)) != getattr(app, key) for key in ("server_id", "cd_path"))


async def check_new_place(connection: AsyncConnection, app: App) -> None:
    """Raise ConflictError if another app of that server uses that directory or Compose project name.

    The server is locked until the end of the transaction, so that no other app is placed there.
    """
    await server_store.lock(connection, app.server_id)
    await check_directory(connection, app)
    for other in await store.neighbours(connection, app, directories(app)):
        if app.project_name is not None and other.project_name == app.project_name:
            raise ConflictError(
                "project_taken",
                f"{other.cd_path}, of the app {other.name}, is the Compose project {app.project_name} as well: give "
                f"{app.cd_path} a `name:` of its own in its compose file.",
            )


async def check_directory(connection: AsyncConnection, app: App) -> None:
    """Raise ConflictError if another app of that server is known to be in the same directory."""
    other = await in_same_directory(connection, app)
    if other is not None:
        raise ConflictError("directory_taken", taken(app, other))


async def in_same_directory(connection: AsyncConnection, app: App) -> Neighbour | None:
    """Return another app in the same directory, compared as written and as resolved; None if there is none."""
    mine = directories(app)
    found = await store.neighbours(connection, app, mine)
    return next((other for other in found if mine & directories(other)), None)


class Shared:
    """Apps of one server that share a directory as their host resolves it; only the host can resolve symbolic links."""

    def __init__(self, apps: Sequence[App]) -> None:
        self._directories = {app.id: directories(app) for app in apps}
        self._apps = sorted(apps, key=lambda app: app.age)

    def note(self, app: App, observation: AppObservation) -> None:
        """Remember the resolved directory of an app."""
        if observation.project is not None:
            seen = replace(app, project_directory=observation.project.directory)
            self._directories[app.id] = directories(seen)

    def first(self, app: App) -> App | None:
        """Return the oldest other app in an app's directory; None if there is none."""
        mine = self._directories[app.id]
        return next((each for each in self._apps if each.id != app.id and mine & self._directories[each.id]), None)


def problem_of(app: App, observation: AppObservation, shares: App | None) -> str | None:
    """Return the problem of an app's directory as a sentence; None if there is none."""
    if shares is not None:
        return taken(app, shares)
    if observation.problem_code == GONE and any(c.alive for c in observation.containers):
        hint = "say in cdPath where it is now, or stop the app."
        return f"{app.cd_path} is gone from the host while its containers run: {hint}"
    return None


def taken(app: App, other: App | Neighbour) -> str:
    """Return the sentence on an app that shares its directory with another."""
    return f"{app.cd_path} is the directory of the app {other.name}, too: give each app a directory of its own."


def directories(app: App | Neighbour) -> set[str]:
    """Return an app's directory as written, normalized, and as its host resolves it."""
    written = "/" + normpath(app.cd_path).lstrip("/")
    return {written, app.project_directory or written}
