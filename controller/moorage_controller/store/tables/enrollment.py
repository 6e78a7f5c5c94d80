"""Tables of the certificate authority, join tokens, and enrollments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.database.rows import columns, to_dataclass, to_values
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.schema import authorities, enrollment_tokens, enrollments, servers

_ONLY = 1
"""Fixed ID of the only authority, which makes a second one impossible."""


@dataclass(frozen=True, slots=True)
class StoredAuthority:
    """The CA: its certificate (PEM) and its sealed key."""

    id: int
    certificate: str
    encrypted_key: Ciphertext
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A join token: valid for one server, once, until `expires_at`."""

    id: UUID
    server_id: UUID
    encrypted_secret: Ciphertext
    expires_at: datetime
    used_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Enrollment:
    """The enrollment of a host by a join token, or over SSH (`token_id` is None).

    `public_key` is the SHA-256 of the public key in the CSR, in hex; `certificate` (PEM) is the newest for its name.
    """

    id: UUID
    server_id: UUID
    token_id: UUID | None
    agent_name: str
    public_key: str
    certificate: str
    created_at: datetime


async def authority(connection: AsyncConnection) -> StoredAuthority | None:
    """Return the authority, or None before the first start."""
    row = (await connection.execute(select(*columns(StoredAuthority, authorities)))).first()
    return None if row is None else to_dataclass(StoredAuthority, row)


async def add_authority(
    connection: AsyncConnection, certificate: str, encrypted_key: Ciphertext, now: datetime
) -> None:
    """Store the authority. Raises IntegrityError if there is one."""
    await connection.execute(
        insert(authorities).values(to_values(StoredAuthority(_ONLY, certificate, encrypted_key, now)))
    )


async def add_token(connection: AsyncConnection, token: StoredToken) -> None:
    """Store a join token; delete unused older ones of the same server."""
    unused = enrollment_tokens.c.used_at.is_(None) & (enrollment_tokens.c.server_id == token.server_id)
    await connection.execute(delete(enrollment_tokens).where(unused))
    await connection.execute(insert(enrollment_tokens).values(to_values(token)))


async def token(connection: AsyncConnection, token_id: UUID) -> StoredToken | None:
    """Return a join token, used or not."""
    query = select(*columns(StoredToken, enrollment_tokens)).where(enrollment_tokens.c.id == token_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(StoredToken, row)


async def spend_token(connection: AsyncConnection, token_id: UUID, now: datetime) -> bool:
    """Mark a token as used; return False if it was used before."""
    query = update(enrollment_tokens).where(enrollment_tokens.c.id == token_id, enrollment_tokens.c.used_at.is_(None))
    return (await connection.execute(query.values(used_at=now))).rowcount == 1


async def add_enrollment(connection: AsyncConnection, enrollment: Enrollment) -> None:
    """Store an enrollment."""
    await connection.execute(insert(enrollments).values(to_values(enrollment)))


async def enrollment_of(connection: AsyncConnection, token_id: UUID) -> Enrollment | None:
    """Return the enrollment by a join token, or None."""
    query = select(*columns(Enrollment, enrollments)).where(enrollments.c.token_id == token_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollment_of_name(connection: AsyncConnection, server_id: UUID, agent_name: str) -> Enrollment | None:
    """Return a server's enrollment by agent name, or None."""
    query = select(*columns(Enrollment, enrollments)).where(
        enrollments.c.server_id == server_id, enrollments.c.agent_name == agent_name
    )
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollment_of_key(connection: AsyncConnection, server_id: UUID, public_key: str) -> Enrollment | None:
    """Return a server's newest enrollment over SSH with that public key digest, or None."""
    query = select(*columns(Enrollment, enrollments)).where(
        enrollments.c.server_id == server_id,
        enrollments.c.public_key == public_key,
        enrollments.c.token_id.is_(None),
    )
    row = (await connection.execute(query.order_by(enrollments.c.created_at.desc()))).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollments_in_force(connection: AsyncConnection) -> Sequence[Enrollment]:
    """Return the current enrollments: those whose agent name is that of their server."""
    query = select(*columns(Enrollment, enrollments)).join(
        servers, (servers.c.id == enrollments.c.server_id) & (servers.c.agent_name == enrollments.c.agent_name)
    )
    return [to_dataclass(Enrollment, row) for row in await connection.execute(query)]


async def replace_certificate(connection: AsyncConnection, enrollment_id: UUID, certificate: str) -> None:
    """Store the newest certificate (PEM) of an enrollment."""
    await connection.execute(
        update(enrollments).where(enrollments.c.id == enrollment_id).values(certificate=certificate)
    )
