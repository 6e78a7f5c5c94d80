"""SSH host keys: pinned at first sight (`Keys.pin`), changed by an admin alone."""

from uuid import UUID

from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, NotFoundError
from moorage_controller.hosts.credentials import fingerprint
from moorage_controller.hosts.transport import Hosts
from moorage_controller.services.audit import Action, record
from moorage_controller.services.ways import way_to
from moorage_controller.signals import Signals
from moorage_controller.store import servers as store
from moorage_controller.store.engine import Database
from moorage_controller.store.servers import Server


class HostKeys:
    """Decides which key a host may show."""

    def __init__(self, database: Database, signals: Signals, hosts: Hosts) -> None:
        self._database = database
        self._signals = signals
        self._hosts = hosts

    async def accept(self, server_id: UUID, wanted: str, actor: Actor) -> Server:
        """Trust the key that the host shows now, where it is the one of that fingerprint.

        Raises NotFoundError; HostUnreachableError; ConflictError `host_key_mismatch` where it shows another.
        """
        async with self._database.read() as connection:
            server = _found(await store.get(connection, server_id))
        # Outside of the transaction: it takes as long as the host takes.
        shown = await self._hosts.shown_host_key(way_to(server))
        if fingerprint(shown) != wanted:
            raise ConflictError(
                "host_key_mismatch",
                f"The host shows another key now ({fingerprint(shown)}): compare it with the host's own "
                "(`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), and send that fingerprint.",
            )
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            server = _found(await store.get(connection, server_id))
            await store.change(connection, server_id, {"host_key": shown, "updated_at": now})
            before = fingerprint(server.host_key) if server.host_key else None
            message = f"The SSH host key of server {server.name} was accepted: {wanted}."
            resource = ("server", server_id, server.name)
            details = {"fingerprint": wanted, "before": before}
            await record(connection, now, actor, Action.HOST_KEY_ACCEPTED, resource, message, details)
            server = _found(await store.get(connection, server_id))
        self._signals.server_changed.emit(server_id)
        return server


def _found(server: Server | None) -> Server:
    if server is None:
        raise NotFoundError("server_not_found", "There is no server of that id.")
    return server
