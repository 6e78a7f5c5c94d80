"""The authority, join tokens, and the enrolments they led to."""

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
"""There is one authority; its fixed id makes a second one impossible."""


@dataclass(frozen=True, slots=True)
class StoredAuthority:
    """The CA: its certificate (PEM), and its key, sealed."""

    id: int
    certificate: str
    encrypted_key: Ciphertext
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A join token: good for one server, once, until `expires_at`."""

    id: UUID
    server_id: UUID
    encrypted_secret: Ciphertext
    expires_at: datetime
    used_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What makes a host a member: by a join token, or over SSH (`token_id` None).

    `public_key` is the SHA-256 of the key in its request, hex; `certificate` (PEM) the newest one for its name.
    """

    id: UUID
    server_id: UUID
    token_id: UUID | None
    agent_name: str
    public_key: str
    certificate: str
    created_at: datetime


async def authority(connection: AsyncConnection) -> StoredAuthority | None:
    """Return the authority, None before the first start."""
    row = (await connection.execute(select(*columns(StoredAuthority, authorities)))).first()
    return None if row is None else to_dataclass(StoredAuthority, row)


async def add_authority(
    connection: AsyncConnection, certificate: str, encrypted_key: Ciphertext, now: datetime
) -> None:
    """Store the authority. Raises IntegrityError when there is one."""
    await connection.execute(
        insert(authorities).values(to_values(StoredAuthority(_ONLY, certificate, encrypted_key, now)))
    )


async def add_token(connection: AsyncConnection, token: StoredToken) -> None:
    """Store a join token; unused older ones of the same server are void from then on."""
    unused = enrollment_tokens.c.used_at.is_(None) & (enrollment_tokens.c.server_id == token.server_id)
    await connection.execute(delete(enrollment_tokens).where(unused))
    await connection.execute(insert(enrollment_tokens).values(to_values(token)))


async def token(connection: AsyncConnection, token_id: UUID) -> StoredToken | None:
    """Return a join token, used or not."""
    query = select(*columns(StoredToken, enrollment_tokens)).where(enrollment_tokens.c.id == token_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(StoredToken, row)


async def spend_token(connection: AsyncConnection, token_id: UUID, now: datetime) -> bool:
    """Use a token up; False when somebody did so before."""
    query = update(enrollment_tokens).where(enrollment_tokens.c.id == token_id, enrollment_tokens.c.used_at.is_(None))
    return (await connection.execute(query.values(used_at=now))).rowcount == 1


async def add_enrollment(connection: AsyncConnection, enrollment: Enrollment) -> None:
    """Store an enrolment."""
    await connection.execute(insert(enrollments).values(to_values(enrollment)))


async def enrollment_of(connection: AsyncConnection, token_id: UUID) -> Enrollment | None:
    """Return what a token was spent on."""
    query = select(*columns(Enrollment, enrollments)).where(enrollments.c.token_id == token_id)
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollment_of_name(connection: AsyncConnection, server_id: UUID, agent_name: str) -> Enrollment | None:
    """Return a server's enrolment of a name."""
    query = select(*columns(Enrollment, enrollments)).where(
        enrollments.c.server_id == server_id, enrollments.c.agent_name == agent_name
    )
    row = (await connection.execute(query)).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollment_of_key(connection: AsyncConnection, server_id: UUID, public_key: str) -> Enrollment | None:
    """Return a server's newest enrolment over SSH of a key."""
    query = select(*columns(Enrollment, enrollments)).where(
        enrollments.c.server_id == server_id,
        enrollments.c.public_key == public_key,
        enrollments.c.token_id.is_(None),
    )
    row = (await connection.execute(query.order_by(enrollments.c.created_at.desc()))).first()
    return None if row is None else to_dataclass(Enrollment, row)


async def enrollments_in_force(connection: AsyncConnection) -> Sequence[Enrollment]:
    """Return the enrolments whose names controllers demand."""
    query = select(*columns(Enrollment, enrollments)).join(
        servers, (servers.c.id == enrollments.c.server_id) & (servers.c.agent_name == enrollments.c.agent_name)
    )
    return [to_dataclass(Enrollment, row) for row in await connection.execute(query)]


async def replace_certificate(connection: AsyncConnection, enrollment_id: UUID, certificate: str) -> None:
    """Store the newest certificate (PEM) of an enrolment."""
    await connection.execute(
        update(enrollments).where(enrollments.c.id == enrollment_id).values(certificate=certificate)
    )
