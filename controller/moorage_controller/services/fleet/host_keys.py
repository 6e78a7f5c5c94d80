"""SSH host keys: pinned at first use, and changed only by an admin."""

from dataclasses import replace
from uuid import UUID

from moorage_controller.auth.roles import OBSERVER, Actor
from moorage_controller.errors import ConflictError, HostUnreachableError, NotFoundError
from moorage_controller.hosts.credentials import fingerprint
from moorage_controller.hosts.ssh.session.connection import SshTarget
from moorage_controller.hosts.transport import Hosts
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import servers as store
from moorage_controller.store.tables.servers import Server


class PinnedKeys:
    """Pins the host key that a server presents first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pin(self, target: SshTarget, host_key: str) -> str:
        """Pin and audit the key of a server that has none; return the pinned key.

        Raises NotFoundError; HostUnreachableError if the server's address has changed.
        """
        async with self._database.read() as connection:
            server = _found(await store.get(connection, target.server_id))
        if server.host_key is not None:
            return server.host_key
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            server = _found(await store.get(connection, target.server_id))
            if server.host_key is not None:
                return server.host_key
            seen = replace(server, address=target.address, ssh_port=target.port)
            if not await store.pin(connection, seen, {"host_key": host_key}):
                raise HostUnreachableError("The address of this server has changed just now: ask again.")
            sentence = f"The SSH host key {fingerprint(host_key)} of {server.name} was taken at first sight."
            resource = ("server", server.id, server.name)
            details = {"fingerprint": fingerprint(host_key), "before": None}
            await record(connection, now, OBSERVER, Action.HOST_KEY_ACCEPTED, resource, sentence, details)
        return host_key


class HostKeys:
    """Replaces pinned keys at an admin's request."""

    def __init__(self, database: Database, hosts: Hosts, signals: Signals) -> None:
        self._database = database
        self._hosts = hosts
        self._signals = signals

    async def accept(self, server_id: UUID, wanted: str, actor: Actor) -> Server:
        """Pin the key that the host presents now, if its fingerprint (`SHA256:...`) is `wanted`.

        Raises NotFoundError; HostUnreachableError; ConflictError for any other key.
        """
        async with self._database.read() as connection:
            server = _found(await store.get(connection, server_id))
        host_key = await self._hosts.host_key(server)
        shown = fingerprint(host_key)
        if shown != wanted:
            raise ConflictError("host_key_differs", f"The host shows the key {shown}, and not {wanted}: look again.")
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            if not await store.pin(connection, server, {"host_key": host_key, "updated_at": now}):
                raise ConflictError("host_key_differs", "The server was changed meanwhile: look at its key again.")
            details = {"fingerprint": wanted, "before": fingerprint(server.host_key) if server.host_key else None}
            sentence = f"The SSH host key {wanted} of {server.name} was accepted."
            resource = ("server", server_id, server.name)
            await record(connection, now, actor, Action.HOST_KEY_ACCEPTED, resource, sentence, details)
            server = _found(await store.get(connection, server_id))
        self._signals.server_changed.emit(server_id)
        return server


def _found(server: Server | None) -> Server:
    if server is None:
        raise NotFoundError("server_not_found", "There is no server of that id.")
    return server
