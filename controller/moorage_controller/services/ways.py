"""What a server's row says about the way to it."""

import hashlib
from uuid import UUID

from moorage_controller.errors import HostUnreachableError, NotFoundError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.transport import Way
from moorage_controller.services.credentials import Credentials
from moorage_controller.store import servers as store
from moorage_controller.store.encryption import UndecryptableError
from moorage_controller.store.engine import Database
from moorage_controller.store.servers import Server


def way_to(server: Server) -> Way:
    """Return the way to a server."""
    sealed = server.encrypted_credentials
    return Way(
        server_id=server.id,
        endpoint=server.api_endpoint,
        agent_name=server.agent_name,
        address=server.address,
        ssh_user=server.ssh_user or "",
        ssh_port=server.ssh_port,
        host_key=server.host_key or "",
        credentials="" if sealed is None else hashlib.sha256(sealed.encode()).hexdigest(),
    )


class Keys:
    """What opens a host, and what it proves itself with, for whoever connects to it."""

    def __init__(self, database: Database, credentials: Credentials) -> None:
        self._database = database
        self._credentials = credentials

    async def of(self, server_id: UUID) -> SshCredentials | None:
        """Return a server's credentials, None where it has none. Raises HostUnreachableError."""
        try:
            return await self._credentials.credentials_of(server_id)
        except NotFoundError as error:
            raise HostUnreachableError(error.sentence, error.code) from None
        except UndecryptableError as error:
            raise HostUnreachableError(str(error), "undecryptable_secret") from None

    async def pin(self, server_id: UUID, host_key: str) -> str:
        """Store the host key of a server that has none yet; return the one that is stored, whoever was first."""
        async with self._database.write() as connection:
            server = await store.get(connection, server_id)
            if server is not None and server.host_key:
                return server.host_key
            await store.change(connection, server_id, {"host_key": host_key})
        return host_key
