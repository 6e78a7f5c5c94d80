"""Enrollment: the certificate authority, join tokens, and certificates for agents."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from moorage_common.tls.join_token import JoinToken
from moorage_common.tls.x509 import agent_name
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.auth.roles import Actor, Origin
from moorage_controller.errors import InvalidError, NotAuthenticatedError, NotFoundError
from moorage_controller.pki.authority import Authority, public_key_digest
from moorage_controller.services.audit.audit import Action, record
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.tables import enrollment as store
from moorage_controller.store.tables import servers as server_store

TOKEN_LIFETIME = timedelta(hours=1)
_KEY_COLUMN = "authorities.encrypted_key"
_SECRET_COLUMN = "enrollment_tokens.encrypted_secret"  # noqa: S105 - a column's name


@dataclass(frozen=True, slots=True)
class Membership:
    """Result of an enrollment: the agent's certificate, the CA certificate (both PEM), and the agent's name."""

    certificate: str
    ca: str
    server_id: UUID
    agent_name: str


async def load_authority(database: Database, keyring: Keyring) -> Authority:
    """Return the installation's certificate authority, created on first start. Raises UndecryptableError."""
    async with database.write() as connection:
        stored = await store.authority(connection)
        if stored is not None:
            key = keyring.open(stored.encrypted_key, column=_KEY_COLUMN, row="1")
            return Authority(stored.certificate.encode(), key.encode())
        now = await database.now(connection)
        authority, key_pem = Authority.create(now)
        sealed = keyring.seal(key_pem.decode(), column=_KEY_COLUMN, row="1")
        await store.add_authority(connection, authority.certificate_pem.decode(), sealed, now)
        return authority


class Enrollments:
    """Creates join tokens and enrolls hosts."""

    def __init__(self, database: Database, keyring: Keyring, authority: Authority, signals: Signals) -> None:
        self._database = database
        self._keyring = keyring
        self._authority = authority
        self._signals = signals

    async def new_token(self, server_id: UUID, actor: Actor) -> tuple[JoinToken, datetime]:
        """Create a join token for a server; return it and its expiry. Older unused ones of that server become void."""
        token_id = uuid4()
        token = JoinToken.make(str(token_id), self._authority.fingerprint)
        sealed = self._keyring.seal(token.secret.hex(), column=_SECRET_COLUMN, row=str(token_id))
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            server = await server_store.get(connection, server_id)
            if server is None:
                raise NotFoundError("server_not_found", "There is no server of that id.")
            expires_at = now + TOKEN_LIFETIME
            await store.add_token(connection, store.StoredToken(token_id, server_id, sealed, expires_at, None, now))
            resource = ("server", server_id, server.name)
            message = f"A join token for {server.name} was made."
            await record(connection, now, actor, Action.TOKEN_CREATE, resource, message)
        return token, expires_at

    async def enroll(self, proof: str, csr: str, endpoint: str, version: str, origin: Origin) -> Membership:
        """Enroll a host: check the proof, sign its key for a new name, make it the server's only agent.

        A repeated request gets the same certificate, so that a lost response does no harm. Raises
        NotAuthenticatedError for a token that is unknown, expired, used or not proven; InvalidError for a bad request.
        """
        try:
            key_digest = public_key_digest(csr.encode())
        except ValueError as error:
            raise InvalidError({"csr": str(error)}) from None
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            token = await self._proven_token(connection, proof, csr, endpoint, version, now)
            enrollment = await store.enrollment_of(connection, token.id)
            if enrollment is None:
                enrollment = await self._admit(connection, token, csr, key_digest, now)
                await self._make_member(connection, enrollment, endpoint, version, origin, now)
            elif enrollment.public_key != key_digest:
                raise _refused("join_token_used", "This join token was used before: make a new one for this host.")
        self._signals.server_changed.emit(enrollment.server_id)
        ca = self._authority.certificate_pem.decode()
        return Membership(enrollment.certificate, ca, enrollment.server_id, enrollment.agent_name)

    @property
    def ca_fingerprint(self) -> str:
        """The SHA-256 fingerprint of the CA certificate, in hex."""
        return self._authority.fingerprint

    async def knows(self, server_id: UUID, agent_name: str) -> bool:
        """Return whether a server was ever enrolled under that agent name."""
        async with self._database.read() as connection:
            return await store.enrollment_of_name(connection, server_id, agent_name) is not None

    async def issue(self, server_id: UUID, csr: bytes) -> Membership:
        """Sign a CSR fetched from a host over SSH, for a new name; the server's row stays unchanged.

        A repeated request within an hour gets the same certificate. Raises InvalidError for a bad request.
        """
        try:
            key_digest = public_key_digest(csr)
        except ValueError as error:
            raise InvalidError({"csr": str(error)}) from None
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            enrollment = await store.enrollment_of_key(connection, server_id, key_digest)
            # An enrollment of an installation that failed long ago is not reused.
            if enrollment is None or enrollment.created_at < now - TOKEN_LIFETIME:
                enrollment = await self._sign(connection, server_id, None, csr, key_digest, now)
        ca = self._authority.certificate_pem.decode()
        return Membership(enrollment.certificate, ca, server_id, enrollment.agent_name)

    async def _proven_token(
        self, connection: AsyncConnection, proof: str, csr: str, endpoint: str, version: str, now: datetime
    ) -> store.StoredToken:
        unknown = _refused("bad_join_token", "The join token is unknown or void: make a new one for this host.")
        try:
            token_id = UUID(proof.partition(".")[0])
        except ValueError:
            raise unknown from None
        token = await store.token(connection, token_id)
        if token is None:
            raise unknown
        try:
            secret = self._keyring.open(token.encrypted_secret, column=_SECRET_COLUMN, row=str(token.id))
        except UndecryptableError:
            sentence = "The join token can't be checked any more, since the encryption key has changed: make a new one."
            raise _refused("join_token_unreadable", sentence) from None
        expected = JoinToken(str(token.id), bytes.fromhex(secret), self._authority.fingerprint).proof(
            csr, endpoint, version
        )
        if not hmac.compare_digest(expected.encode(), proof.encode()):
            raise unknown
        if token.expires_at <= now:
            raise _refused("join_token_expired", "The join token has expired: make a new one for this host.")
        return token

    async def _admit(
        self, connection: AsyncConnection, token: store.StoredToken, csr: str, key_digest: str, now: datetime
    ) -> store.Enrollment:
        await store.spend_token(connection, token.id, now)
        return await self._sign(connection, token.server_id, token.id, csr.encode(), key_digest, now)

    async def _sign(
        self,
        connection: AsyncConnection,
        server_id: UUID,
        token_id: UUID | None,
        csr: bytes,
        key_digest: str,
        now: datetime,
    ) -> store.Enrollment:
        enrollment_id = uuid4()
        name = agent_name(str(enrollment_id))
        certificate = self._authority.issue_agent(csr, name, now).decode()
        enrollment = store.Enrollment(enrollment_id, server_id, token_id, name, key_digest, certificate, now)
        await store.add_enrollment(connection, enrollment)
        return enrollment

    async def _make_member(
        self,
        connection: AsyncConnection,
        enrollment: store.Enrollment,
        endpoint: str,
        version: str,
        origin: Origin,
        now: datetime,
    ) -> None:
        values = {
            "api_endpoint": endpoint,
            "agent_name": enrollment.agent_name,
            "agent_version": version,
            "updated_at": now,
        }
        await server_store.change(connection, enrollment.server_id, values)
        server = await server_store.get(connection, enrollment.server_id)
        assert server is not None
        actor = Actor(None, enrollment.agent_name, origin)
        message = f"The agent on {server.name} was enrolled."
        resource = ("server", server.id, server.name)
        await record(
            connection, now, actor, Action.ENROLL, resource, message, {"endpoint": endpoint, "version": version}
        )


def _refused(code: str, sentence: str) -> NotAuthenticatedError:
    return NotAuthenticatedError(code, sentence)
