"""Output of operations, byte by byte in order; the newest 10 MiB of each operation are kept."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.store.schema import operation_output as pieces
from moorage_controller.store.schema import operations

KEPT_BYTES = 10 << 20
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an operation's output; `start` is the offset of its first byte."""

    start: int
    data: bytes

    @property
    def stop(self) -> int:
        """The offset after its last byte."""
        return self.start + len(self.data)


async def length(connection: AsyncConnection, operation_id: UUID) -> int:
    """Return the offset after the last stored byte; 0 if there is none."""
    query = select(func.max(pieces.c.stop)).where(pieces.c.operation_id == operation_id)
    return int((await connection.execute(query)).scalar_one() or 0)


async def append(connection: AsyncConnection, operation_id: UUID, new: Piece, *, keep: int = KEPT_BYTES) -> None:
    """Append the missing part of a piece, in a write transaction; beyond `keep` bytes the oldest pieces are deleted."""
    known = await length(connection, operation_id)
    start = max(new.start, known)
    data = new.data[start - new.start :]
    if not data:
        return
    stop = start + len(data)
    # In small pieces, as each is always read as a whole.
    values = [
        {"operation_id": operation_id, "start": start + n, "stop": start + n + len(part), "data": part}
        for n in range(0, len(data), _PIECE_BYTES)
        if (part := data[n : n + _PIECE_BYTES])
    ]
    await connection.execute(insert(pieces), values)
    if stop > keep:
        old = delete(pieces).where(pieces.c.operation_id == operation_id, pieces.c.stop <= stop - keep)
        await connection.execute(old)


async def after(connection: AsyncConnection, operation_id: UUID, offset: int) -> Piece | None:
    """Return the rest of the piece at an offset, or the next piece if that was deleted; None at the end."""
    query = (
        select(pieces.c.start, pieces.c.data)
        .where(pieces.c.operation_id == operation_id, pieces.c.stop > offset)
        .order_by(pieces.c.start)
        .limit(1)
    )
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    skipped = max(offset - row.start, 0)
    return Piece(row.start + skipped, row.data[skipped:])


async def tail(connection: AsyncConnection, operation_id: UUID, size: int) -> bytes:
    """Return the last bytes, `size` at most."""
    end = await length(connection, operation_id)
    query = select(pieces.c.data).where(pieces.c.operation_id == operation_id, pieces.c.stop > end - size)
    found = [row.data for row in await connection.execute(query.order_by(pieces.c.start))]
    return b"".join(found)[-size:]


async def remove_old(connection: AsyncConnection, before: datetime, at_once: int) -> int:
    """Delete the output of up to `at_once` operations that ended before `before`; return the number of pieces."""
    old = (
        select(operations.c.id)
        .where(operations.c.finished_at < before, operations.c.id.in_(select(pieces.c.operation_id)))
        .limit(at_once)
    )
    return (await connection.execute(delete(pieces).where(pieces.c.operation_id.in_(old)))).rowcount
