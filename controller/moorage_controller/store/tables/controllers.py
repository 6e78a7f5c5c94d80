"""The `controllers` table: heartbeats of the controllers that share the database."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.schema import controllers


async def heartbeat(connection: AsyncConnection, controller_id: UUID, now: datetime) -> None:
    """Store a controller's heartbeat."""
    seen = update(controllers).where(controllers.c.id == controller_id).values(seen_at=now)
    if (await connection.execute(seen)).rowcount == 0:
        await connection.execute(insert(controllers).values(id=controller_id, seen_at=now))


async def seen_between(connection: AsyncConnection, after: datetime, until: datetime) -> Collection[UUID]:
    """Return the controllers with a last heartbeat between two times, and delete the others."""
    elsewhen = or_(controllers.c.seen_at <= after, controllers.c.seen_at > until)
    await connection.execute(delete(controllers).where(elsewhen))
    return set((await connection.execute(select(controllers.c.id))).scalars())


async def unregister(connection: AsyncConnection, controller_id: UUID) -> None:
    """Delete a controller."""
    await connection.execute(delete(controllers).where(controllers.c.id == controller_id))
