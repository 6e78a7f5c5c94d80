"""Helpers for the tests of backup and restore: databases to fill, back up, restore into, and compare."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from click.testing import CliRunner, Result
from factories import ENCRYPTION_KEY, add_app, add_operation, add_users, audit_row, project_row, server_row
from fakes import EPOCH, FakeClock
from moorage_controller import cli
from moorage_controller.services.admin import backup
from moorage_controller.services.agents.enrollment import load_authority
from moorage_controller.store.database.database import Database, postgresql_url, sqlite_url
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.schema import (
    api_tokens,
    audit_logs,
    enrollment_tokens,
    enrollments,
    login_failures,
    metadata,
    users,
)
from moorage_controller.store.schema import projects as projects_table
from moorage_controller.store.tables import audit, idempotency, last_logs, output, projects, servers
from moorage_controller.store.tables.output import Piece
from sqlalchemy import func, insert, select

BACKUPS = 8
SECRET = "the host's own password"  # noqa: S105 - a test's


@dataclass(frozen=True)
class Place:
    """A controller's storage: its data folder, and on PostgreSQL the database's URL."""

    folder: Path
    url: str = ""

    def run(self, verb: str, file: Path, **environment: str) -> Result:
        """Run `moorage-controller backup | restore` in this process; blocking."""
        return CliRunner().invoke(cli.main, [verb, str(file)], env={**self.environment, **environment})

    @property
    def environment(self) -> dict[str, str]:
        """The controller's settings."""
        return {
            "MOORAGE_DATA_DIR": str(self.folder),
            "DATABASE_URL": self.url,
            "ENCRYPTION_KEY": ENCRYPTION_KEY,
        }

    def open(self) -> Database:
        """Open the database; close it after use."""
        url = postgresql_url(self.url) if self.url else sqlite_url(self.folder / "moorage.db")
        return Database(url, FakeClock())

    async def everything(self) -> Mapping[str, Any]:
        """Return the rows of all tables that a backup contains."""
        database = self.open()
        try:
            async with database.read() as connection:
                return {
                    each.name: sorted(map(repr, await connection.execute(select(each))))
                    for each in metadata.sorted_tables
                    if each.name not in {"sessions", "controllers", "changes"}
                }
        finally:
            await database.close()


def done(result: Result) -> str:
    """Return the output of a run that succeeded."""
    assert result.exit_code == 0, result.output
    return result.output


def refused(result: Result, code: str) -> str:
    """Return the sentence of a run that failed with that code."""
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.exception
    assert f"({code})" in result.output, result.output
    return result.output.splitlines()[-1]


async def fill(database: Database) -> None:
    """Store rows of all kinds, with each kind of value, in a migrated database."""
    keyring = Keyring([ENCRYPTION_KEY])
    await load_authority(database, keyring)
    await add_users(database)
    app = await add_app(database, name="Größe 東京 \U0001f6a2", last_error='said "no"\n\ttwice', stop_at=EPOCH)
    operation = await add_operation(database, app, state="succeeded", finished_at=EPOCH, exit_code=0)
    token_id = uuid4()
    async with database.write() as connection:
        await output.append(connection, operation.id, Piece(0, b"a\r\nb\0\xff"))
        await last_logs.replace(connection, app.id, EPOCH, {"größe": '[["", "web-1", "a"]]'})
        sealed = keyring.seal(SECRET, column="servers.encrypted_credentials", row=str(app.server_id))
        await servers.change(connection, app.server_id, {"encrypted_credentials": sealed})
        sealed = keyring.seal(SECRET, column="enrollment_tokens.encrypted_secret", row=str(token_id))
        values = {"id": token_id, "server_id": app.server_id, "encrypted_secret": sealed}
        await connection.execute(insert(enrollment_tokens).values(**values, expires_at=EPOCH, created_at=EPOCH))
        values = {"id": uuid4(), "server_id": app.server_id, "token_id": token_id, "agent_name": "a", "public_key": "b"}
        await connection.execute(insert(enrollments).values(**values, certificate="c", created_at=EPOCH))
        await connection.execute(insert(login_failures).values(key="a" * 64, failures=3, last_at=EPOCH))
        user_id = (await connection.execute(select(users.c.id).limit(1))).scalar_one()
        values = {"id": uuid4(), "user_id": user_id, "name": "ci", "digest": "d" * 64, "scopes": "read"}
        await connection.execute(insert(api_tokens).values(**values, created_at=EPOCH))
        await idempotency.keep(connection, idempotency.KeptReply(user_id, "key", "f" * 64, "{}", EPOCH))
        await audit.add(connection, audit_row(None, EPOCH))
        await servers.add(connection, server_row(name="none"))


async def add_pair(database: Database) -> None:
    """Store a project and its audit entry in one transaction: no snapshot has one without the other."""
    project = project_row()
    async with database.write() as connection:
        await projects.add(connection, project)
        await audit.add(connection, audit_row(None, EPOCH, "PAIR"))


async def pairs(database: Database) -> tuple[int, int]:
    """Return the number of projects and of their audit entries."""
    async with database.read() as connection:
        entries = select(func.count()).select_from(audit_logs).where(audit_logs.c.action == "PAIR")
        count = select(func.count()).select_from(projects_table)
        return (await connection.execute(count)).scalar_one(), (await connection.execute(entries)).scalar_one()


async def backed_up_under_writers(source: Place, folder: Path) -> tuple[int, int]:
    """Back up into `folder`/0, 1, ... (BACKUPS of them) while others write pairs; return the pairs of before."""
    database = source.open()
    before = await pairs(database)
    stopped = asyncio.Event()

    async def write() -> None:
        while not stopped.is_set():
            await add_pair(database)

    writers = [asyncio.create_task(write()) for _ in range(3)]
    for number in range(BACKUPS):
        await backup.back_up(database, folder / str(number))
    stopped.set()
    await asyncio.gather(*writers)
    await database.close()
    return before


async def restored_pairs(file: Path, target: Place) -> tuple[int, int]:
    """Restore a backup, and return the pairs in it."""
    done(await asyncio.to_thread(target.run, "restore", file))
    database = target.open()
    try:
        return await pairs(database)
    finally:
        await database.close()
