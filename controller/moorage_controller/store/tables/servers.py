"""The `servers` table: the Docker hosts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.schema import apps, servers
from moorage_controller.store.tables import changes
from moorage_controller.store.tables.changes import Kind


@dataclass(frozen=True, slots=True)
class Server:
    """A row of `servers`. `uptime` is in seconds; `agent_name` is the DNS name of the current enrollment.

    `encrypted_credentials` is sealed SshCredentials; `host_key` the pinned public key, in `known_hosts` format;
    `agent_journal` the folder of the agent's journal on the host; `fallback` the reason for not using the agent now;
    `keeps_deadlines` whether the agent stops apps by itself if no controller does.
    """

    id: UUID
    name: str
    address: str
    ssh_user: str | None
    ssh_port: int
    api_endpoint: str | None
    status: str
    running_apps_count: int
    last_checked: datetime | None
    status_detail: str | None
    running_containers: int
    uptime: int | None
    agent_name: str | None
    agent_version: str | None
    created_at: datetime
    updated_at: datetime
    encrypted_credentials: Ciphertext | None = field(default=None, repr=False)
    host_key: str | None = None
    agent_journal: str | None = None
    fallback: str | None = None
    keeps_deadlines: bool = False

    @property
    def connection(self) -> str:
        """The current connection type: `agent`, `ssh` or `none`."""
        if self.agent_name and not self.fallback:
            return "agent"
        return "ssh" if self.encrypted_credentials else "none"


async def add(connection: AsyncConnection, server: Server) -> None:
    """Insert a server."""
    await connection.execute(insert(servers).values(to_values(server)))
    await changes.note(connection, Kind.SERVER, server.id)


async def get(connection: AsyncConnection, server_id: UUID) -> Server | None:
    """Return a server by ID, or None."""
    row = (await connection.execute(select(*columns(Server, servers)).where(servers.c.id == server_id))).first()
    return None if row is None else to_dataclass(Server, row)


async def lock(connection: AsyncConnection, server_id: UUID) -> None:
    """Lock a server's row until the end of the transaction."""
    await connection.execute(select(servers.c.id).where(servers.c.id == server_id).with_for_update())


async def some(connection: AsyncConnection, server_ids: Collection[UUID]) -> Sequence[Server]:
    """Return the existing servers of those IDs."""
    rows = await connection.execute(select(*columns(Server, servers)).where(servers.c.id.in_(server_ids)))
    return [to_dataclass(Server, row) for row in rows]


async def all_servers(connection: AsyncConnection) -> Sequence[Server]:
    """Return all servers, sorted by name."""
    rows = await connection.execute(select(*columns(Server, servers)).order_by(servers.c.name, servers.c.id))
    return [to_dataclass(Server, row) for row in rows]


async def change(
    connection: AsyncConnection, server_id: UUID, values: Mapping[str, Any], *, quietly: bool = False
) -> bool:
    """Set columns of a server; return False if it doesn't exist. `quietly`: record no change."""
    query = update(servers).where(servers.c.id == server_id).values(values)
    done = (await connection.execute(query)).rowcount == 1
    if done and not quietly:
        await changes.note(connection, Kind.SERVER, server_id)
    return done


async def pin(connection: AsyncConnection, seen: Server, values: Mapping[str, Any]) -> bool:
    """Set `values`, with a new `host_key`, if address and pinned key are as in `seen`; return False otherwise.

    A host key belongs to the address that presented it.
    """
    query = update(servers).where(
        servers.c.id == seen.id,
        servers.c.address == seen.address,
        servers.c.ssh_port == seen.ssh_port,
        servers.c.host_key.is_not_distinct_from(seen.host_key),
    )
    done = (await connection.execute(query.values(values))).rowcount == 1
    if done:
        await changes.note(connection, Kind.SERVER, seen.id)
    return done


async def remove(connection: AsyncConnection, server_id: UUID) -> bool:
    """Delete a server. Raises IntegrityError if it has apps."""
    done = (await connection.execute(delete(servers).where(servers.c.id == server_id))).rowcount == 1
    if done:
        await changes.note(connection, Kind.SERVER, server_id)
    return done


async def recount(connection: AsyncConnection, server_id: UUID) -> None:
    """Update `running_apps_count`; call it in every transaction that changes an app's status."""
    await recount_all(connection, [server_id])


async def recount_all(connection: AsyncConnection, server_ids: Collection[UUID]) -> None:
    """Update `running_apps_count` of several servers."""
    running = (
        select(func.count())
        .select_from(apps)
        .where(apps.c.server_id == servers.c.id, apps.c.status == "running")
        .scalar_subquery()
    )
    stale = select(servers.c.id).where(servers.c.id.in_(server_ids), servers.c.running_apps_count != running)
    found = list((await connection.execute(stale)).scalars())
    if found:
        await connection.execute(update(servers).where(servers.c.id.in_(found)).values(running_apps_count=running))
        await changes.note_all(connection, Kind.SERVER, found)
