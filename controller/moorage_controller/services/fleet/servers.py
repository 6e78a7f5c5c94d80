"""Servers: create, change and delete them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, NotFoundError
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.fleet.checks import Checks
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.services.idempotency import NO_KEY, IdempotentRequest
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import servers as store
from moorage_controller.store.tables.servers import Server


class Servers:
    """Creates, changes and deletes servers."""

    def __init__(
        self,
        database: Database,
        signals: Signals,
        credentials: Credentials,
        checks: Checks,
    ) -> None:
        self._database = database
        self._signals = signals
        self._credentials = credentials
        self._checks = checks

    async def all(self) -> Sequence[Server]:
        """Return all servers by name."""
        async with self._database.read() as connection:
            return await store.all_servers(connection)

    async def get(self, server_id: UUID) -> Server:
        """Return a server. Raises NotFoundError."""
        async with self._database.read() as connection:
            return _found(await store.get(connection, server_id))

    async def create(
        self,
        fields: Mapping[str, Any],
        secrets: Mapping[str, str | None],
        actor: Actor,
        once: IdempotentRequest[Server] = NO_KEY,
    ) -> Server:
        """Create a server and check it: `checking` if the check takes long, `offline` without an agent or SSH access.

        `secrets` are fields of SshCredentials; None means not set. Raises InvalidError for an unusable key.
        """
        server_id = uuid4()
        sealed = await self._credentials.changed(server_id, None, secrets)
        has_way = bool(fields.get("api_endpoint") or sealed)
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await once.begin(connection, now)
            server = Server(
                id=server_id,
                status="checking" if has_way else "offline",
                running_apps_count=0,
                last_checked=None,
                status_detail="It is being checked." if has_way else "It was not checked yet.",
                running_containers=0,
                uptime=None,
                agent_name=None,
                agent_version=None,
                created_at=now,
                updated_at=now,
                encrypted_credentials=sealed,
                **fields,
            )
            await store.add(connection, server)
            resource = ("server", server.id, server.name)
            await record(connection, now, actor, Action.CREATE, resource, f"Server {server.name} was made.")
            await once.keep(connection, now, server)
        return await self._changed(server)

    async def update(
        self, server_id: UUID, changes: Mapping[str, Any], secrets: Mapping[str, str | None], actor: Actor
    ) -> Server:
        """Change fields and SSH credentials: absent ones stay, None drops a credential.

        Raises NotFoundError; InvalidError for an unusable key; ConflictError for a new address while an app on the
        server runs, and for stored secrets that can't be decrypted.
        """
        new = None
        while new is None:
            known = (await self.get(server_id)).encrypted_credentials
            # Outside the transaction: trying a passphrase takes a second.
            sealed = await self._credentials.changed(server_id, known, secrets)
            new = await self._apply(server_id, changes, secrets, (known, sealed), actor)
        return await self._changed(new)

    async def _apply(
        self,
        server_id: UUID,
        changes: Mapping[str, Any],
        secrets: Mapping[str, str | None],
        sealed: tuple[Ciphertext | None, Ciphertext | None],
        actor: Actor,
    ) -> Server | None:
        """Store changes; return None if the stored credentials have changed since `sealed[0]` was read."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            old = _found(await store.get(connection, server_id))
            if secrets and old.encrypted_credentials != sealed[0]:
                return None
            moved = any(getattr(old, key) != changes.get(key, getattr(old, key)) for key in ("address", "api_endpoint"))
            if moved and any(a.status != "stopped" for a in await app_store.on_server(connection, server_id)):
                raise ConflictError("app_running", "The address can't change while an app on this server runs.")
            values = {**changes, "encrypted_credentials": sealed[1]} if secrets else changes
            await store.change(connection, server_id, {**values, "updated_at": now})
            new = _found(await store.get(connection, server_id))
            details = {"changed": sorted({*changes, *(f"ssh_{name}" for name in secrets)})}
            resource = ("server", server_id, new.name)
            await record(connection, now, actor, Action.UPDATE, resource, f"Server {old.name} was changed.", details)
        return new

    async def delete(self, server_id: UUID, actor: Actor) -> None:
        """Delete a server. Raises NotFoundError; ConflictError if it has apps."""
        try:
            async with self._database.write() as connection:
                now = await self._database.now(connection)
                server = _found(await store.get(connection, server_id))
                await store.remove(connection, server_id)
                resource = ("server", server_id, server.name)
                await record(connection, now, actor, Action.DELETE, resource, f"Server {server.name} was removed.")
        except IntegrityError:
            raise ConflictError("server_in_use", "Apps are on this server: move or delete them first.") from None
        self._signals.server_changed.emit(server_id)

    async def _changed(self, server: Server) -> Server:
        """Restart the watch of a server, check it, and return its state."""
        self._signals.server_changed.emit(server.id)
        if not server.api_endpoint and not server.encrypted_credentials:
            return server
        return await self._checks.check_soon(server)


def _found(server: Server | None) -> Server:
    if server is None:
        raise NotFoundError("server_not_found", "There is no server of that id.")
    return server
