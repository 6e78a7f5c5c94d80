"""Servers: the Docker hosts."""

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
    """A row of `servers`. `uptime` is seconds; `agent_name` the DNS name of the enrolment in force.

    `encrypted_credentials` is SshCredentials, sealed; `host_key` the pinned public key, a line as in `known_hosts`;
    `agent_journal` the folder of the agent's journal on the host; `fallback` why the agent isn't used at the moment;
    `keeps_deadlines` whether the agent stops apps itself where no controller does.
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
        """How it is reached just now: `agent`, `ssh` or `none`."""
        if self.agent_name and not self.fallback:
            return "agent"
        return "ssh" if self.encrypted_credentials else "none"


async def add(connection: AsyncConnection, server: Server) -> None:
    """Insert a server."""
    await connection.execute(insert(servers).values(to_values(server)))
    await changes.note(connection, Kind.SERVER, server.id)


async def get(connection: AsyncConnection, server_id: UUID) -> Server | None:
    """Return a server, None when there is none of that id."""
    row = (await connection.execute(select(*columns(Server, servers)).where(servers.c.id == server_id))).first()
    return None if row is None else to_dataclass(Server, row)


async def lock(connection: AsyncConnection, server_id: UUID) -> None:
    """Keep others from a server's row until the end of the transaction."""
    await connection.execute(select(servers.c.id).where(servers.c.id == server_id).with_for_update())


async def some(connection: AsyncConnection, server_ids: Collection[UUID]) -> Sequence[Server]:
    """Return those servers that are there."""
    rows = await connection.execute(select(*columns(Server, servers)).where(servers.c.id.in_(server_ids)))
    return [to_dataclass(Server, row) for row in rows]


async def all_servers(connection: AsyncConnection) -> Sequence[Server]:
    """Return all servers by name."""
    rows = await connection.execute(select(*columns(Server, servers)).order_by(servers.c.name, servers.c.id))
    return [to_dataclass(Server, row) for row in rows]


async def change(
    connection: AsyncConnection, server_id: UUID, values: Mapping[str, Any], *, quietly: bool = False
) -> bool:
    """Set columns of a server; False when there is none of that id. `quietly`: nobody is to be told of it."""
    query = update(servers).where(servers.c.id == server_id).values(values)
    done = (await connection.execute(query)).rowcount == 1
    if done and not quietly:
        await changes.note(connection, Kind.SERVER, server_id)
    return done


async def pin(connection: AsyncConnection, seen: Server, values: Mapping[str, Any]) -> bool:
    """Set the columns `values` of a server, `host_key` among them; False where it isn't any more as it was seen.

    Its address and the key that is pinned must be the same: a key belongs to the address that showed it.
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
    """Delete a server. Raises IntegrityError while apps are on it."""
    done = (await connection.execute(delete(servers).where(servers.c.id == server_id))).rowcount == 1
    if done:
        await changes.note(connection, Kind.SERVER, server_id)
    return done


async def recount(connection: AsyncConnection, server_id: UUID) -> None:
    """Bring `running_apps_count` up to date; called in every transaction that changes an app's status."""
    await recount_all(connection, [server_id])


async def recount_all(connection: AsyncConnection, server_ids: Collection[UUID]) -> None:
    """Do as `recount` does, for many at once."""
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
