"""What a server's row says about the way to it."""

import hashlib
from uuid import UUID

from moorage_controller.errors import HostUnreachableError, NotFoundError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.transport import Way
from moorage_controller.services.credentials import Credentials
from moorage_controller.store.encryption import UndecryptableError
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
    """Opens what opens a host, for whoever connects to it."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def of(self, server_id: UUID) -> SshCredentials | None:
        """Return a server's credentials, None where it has none. Raises HostUnreachableError."""
        try:
            return await self._credentials.credentials_of(server_id)
        except NotFoundError as error:
            raise HostUnreachableError(error.sentence, error.code) from None
        except UndecryptableError as error:
            raise HostUnreachableError(str(error), "undecryptable_secret") from None
