"""Calls of a transport that tests share: orders, their ends, and observations."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID, uuid4

from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.transport import End, HostApp, HostTransport, Order, WatchItem

_PATIENCE = 90.0


def order(cd_path: str, kind: OperationKind = OperationKind.UP) -> Order:
    """Return a new order."""
    return Order(uuid4(), kind, HostApp(cd_path))


async def followed(transport: HostTransport, operation_id: UUID, after: int = 0) -> tuple[bytes, End]:
    """Return the output from an offset on, without a gap in it, and the end."""
    raw = b""
    async with asyncio.timeout(_PATIENCE), aclosing(transport.follow(operation_id, after)) as items:
        async for item in items:
            if isinstance(item, End):
                return raw, item
            assert item.offset == after + len(raw)
            raw += item.data
    raise AssertionError("it ended without an end")


async def run(transport: HostTransport, sent: Order) -> tuple[bytes, End]:
    """Send an order, and follow it to its end."""
    await transport.start(sent)
    return await followed(transport, sent.operation_id)


def watching(transport: HostTransport, *paths: str) -> AsyncGenerator[WatchItem, None]:
    """Watch the apps in some directories; the caller closes the generator."""
    return transport.watch([HostApp(path) for path in paths])
