"""Copies of a filled database, one per test: faster than migrations, and isolated from other tests."""

import asyncio
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from factories import make_settings
from moorage_controller.settings import Settings


class Copies:
    """Copies a template: SQLite's file, or with one connection for all, PostgreSQL's database."""

    def __init__(self, template: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._template = template
        self._loop = loop
        self._server: asyncpg.Connection | None = None

    def make(self, folder: Path) -> Settings:
        """Return the settings of a controller on a new copy, with all else it keeps in `folder`."""
        folder.mkdir(mode=0o700)
        if self._template.sqlite_path is not None:
            settings = make_settings(folder)
            assert settings.sqlite_path is not None
            shutil.copy(self._template.sqlite_path, settings.sqlite_path)
            return settings
        url = urlsplit(self._template.database_url)
        name = f"copy_{uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {_name(self._template)}")
        return make_settings(folder, database_url=url._replace(path=f"/{name}").geturl())

    def drop(self, settings: Settings) -> None:
        """Drop PostgreSQL's copy: a few hundred of them would fill a disk."""
        if settings.sqlite_path is None:
            self._execute(f"DROP DATABASE {_name(settings)} WITH (FORCE)")

    def cut_off(self, settings: Settings) -> None:
        """Forbid connections to PostgreSQL's copy, and terminate the open ones."""
        name = _name(settings)
        self._execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        self._execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608 - our own name

    def give_back(self, settings: Settings) -> None:
        """Allow connections again."""
        self._execute(f"ALTER DATABASE {_name(settings)} ALLOW_CONNECTIONS true")

    def _execute(self, statement: str) -> None:
        async def run() -> None:
            if self._server is None:
                url = urlsplit(self._template.database_url)._replace(path="/postgres").geturl()
                self._server = await asyncpg.connect(url)
            await self._server.execute(statement)

        self._loop.run_until_complete(run())

    def close(self) -> None:
        """Disconnect."""
        if self._server is not None:
            self._loop.run_until_complete(self._server.close())


def _name(settings: Settings) -> str:
    return urlsplit(settings.database_url).path.removeprefix("/")
