"""Renewal of agent certificates, at two thirds of their validity, over the live connection.

The host creates the new key and keeps it; the name stays. The certificate is installed first and stored second: after
a failure in between, the host uses it already, and the next check renews it again. Several controllers do no harm.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from moorage_common.tls import x509
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import DatabaseUnavailableError, HostUnreachableError
from moorage_controller.hosts.agent import AgentTransport
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError
from moorage_controller.pki.authority import Authority
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import enrollment as store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.enrollment import Enrollment
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)

_SHARE = 2 / 3
_JITTER = timedelta(days=3)
"""Spreads the renewal of hosts enrolled on the same day over three days."""


class Renewals:
    """Renews due certificates."""

    def __init__(self, database: Database, authority: Authority, channels: AgentChannels) -> None:
        self._database = database
        self._authority = authority
        self._channels = channels

    async def renew_due(self) -> None:
        """Renew all due certificates of reachable agents; the others wait for the next call."""
        for enrollment in await self._due():
            with structlog.contextvars.bound_contextvars(server_id=str(enrollment.server_id)):
                try:
                    await self._renew(enrollment)
                except (HostUnreachableError, ContactLostError, HostRefusedError) as error:
                    log.warning("certificate_not_renewed", error=str(error))
                except DatabaseUnavailableError:
                    raise
                except Exception:
                    # A failure on one host must not affect others.
                    log.exception("certificate_not_renewed")

    async def _due(self) -> Sequence[Enrollment]:
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            return [found for found in await store.enrollments_in_force(connection) if renewal_at(found) <= now]

    async def _renew(self, enrollment: Enrollment) -> None:
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            server = await server_store.get(connection, enrollment.server_id)
        if server is None or server.api_endpoint is None or server.agent_name != enrollment.agent_name:
            return
        channel = self._channels.get(server.api_endpoint, enrollment.agent_name)
        agent = AgentTransport(channel, server.api_endpoint)
        await agent.connect()
        try:
            # The name comes from the enrollment, not from the CSR.
            certificate = self._authority.issue_agent(await agent.prepare_renewal(), enrollment.agent_name, now)
        except ValueError as error:
            raise HostRefusedError("bad_certificate", f"The agent asks for no certificate: {error}") from None
        await agent.install_certificate(certificate)
        async with self._database.write() as connection:
            await store.replace_certificate(connection, enrollment.id, certificate.decode())
        log.info("certificate_renewed", until=x509.expires_at(certificate).isoformat())


def renewal_at(enrollment: Enrollment) -> datetime:
    """Return the renewal time of a certificate (UTC): two thirds of its validity, plus up to three days' jitter."""
    begin, end = x509.validity(enrollment.certificate.encode())
    jitter = int.from_bytes(hashlib.sha256(enrollment.id.bytes).digest()[:4]) / (1 << 32)
    return begin + (end - begin) * _SHARE + _JITTER * jitter


async def expired_sentence(connection: AsyncConnection, server: Server, now: datetime) -> str:
    """Return a sentence for a server whose agent's certificate has expired; empty if it hasn't."""
    if server.agent_name is None:
        return ""
    enrollment = await store.enrollment_of_name(connection, server.id, server.agent_name)
    if enrollment is None:
        return ""
    expiry = x509.expires_at(enrollment.certificate.encode())
    if expiry > now:
        return ""
    return (
        f"The certificate of the agent on {server.name} expired on {expiry:%Y-%m-%d}: install the agent again "
        f"(POST /api/servers/{server.id}/agent), or enrol the host with a new join token"
    )
