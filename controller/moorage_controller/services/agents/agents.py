"""Agents on servers: install, upgrade and remove them, each as an operation."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, NotFoundError
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.services.operations.operations import Operations
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import operations as operation_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.servers import Server

INSTALL, UNINSTALL = operation_store.AGENT_KINDS
_LIMIT = timedelta(minutes=15)
_ACTIONS = {INSTALL: Action.AGENT_INSTALL, UNINSTALL: Action.AGENT_UNINSTALL}
_DOES = {INSTALL: "installation", UNINSTALL: "removal"}


class Agents:
    """Begins operations on agents; `Bootstrap` runs them."""

    def __init__(self, database: Database, operations: Operations) -> None:
        self._database = database
        self._operations = operations

    async def install(self, server_id: UUID, actor: Actor, port: int, roots: Sequence[str]) -> Operation:
        """Begin an installation or upgrade, or join the one in flight.

        Raises NotFoundError; ConflictError without SSH credentials (`no_credentials`), or if a conflicting operation is
        in flight.
        """
        return await self._begin(server_id, INSTALL, actor, {"port": port, "roots": list(roots)})

    async def uninstall(self, server_id: UUID, actor: Actor, *, force: bool) -> Operation:
        """Begin a removal, or join the one in flight; `force` revokes the agent even if the host is unreachable.

        Raises the errors of `install`.
        """
        return await self._begin(server_id, UNINSTALL, actor, {"force": force})

    async def _begin(self, server_id: UUID, kind: str, actor: Actor, request: Mapping[str, Any]) -> Operation:
        while True:
            try:
                return await self._record(server_id, kind, actor, request)
            except IntegrityError:
                async with self._database.read() as connection:
                    other = await operation_store.agent_in_flight(connection, server_id)
                if other is None:
                    continue  # it ended in between: try again
                if other.kind == kind:
                    return other
                sentence = f"The {_DOES[other.kind]} of this server's agent is in progress: wait for its end."
                raise ConflictError("operation_in_progress", sentence) from None

    async def _record(self, server_id: UUID, kind: str, actor: Actor, request: Mapping[str, Any]) -> Operation:
        async with self._operations.recording() as (connection, launch):
            now = await self._database.now(connection)
            server = await server_store.get(connection, server_id)
            if server is None:
                raise NotFoundError("server_not_found", "There is no server of that id.")
            # The journal moves with the agent, but an operation has to be found where it began.
            exclusive = kind == UNINSTALL or server.agent_name is None
            await _check(connection, server, exclusive=exclusive, needs_ssh=not request.get("force"))
            operation = Operation(
                id=uuid4(),
                kind=kind,
                app_id=None,
                server_id=server_id,
                actor_id=actor.user_id,
                actor=actor.name,
                created_at=now,
                deadline_at=now + _LIMIT,
                request=json.dumps({**request, "exclusive": exclusive}),
                driver=self._operations.driver,
            )
            await operation_store.add(connection, operation)
            launch(operation)
            resource = ("server", server_id, server.name)
            message = f"{actor.name} asked for the {_DOES[kind]} of the agent on {server.name}."
            details = {"operationId": str(operation.id)}
            await record(connection, now, actor, _ACTIONS[kind], resource, message, details)
        return operation


async def _check(connection: AsyncConnection, server: Server, *, exclusive: bool, needs_ssh: bool) -> None:
    if needs_ssh and not server.encrypted_credentials:
        raise ConflictError(
            "no_credentials",
            "This server has no SSH key or password, by which its agent could be installed or removed: add one, or "
            "make a join token and run `moorage-agent enroll` on the host.",
        )
    if exclusive and await operation_store.apps_in_flight(connection, server.id):
        raise ConflictError("operation_in_progress", "An app on this server is being started or stopped: wait for it.")
