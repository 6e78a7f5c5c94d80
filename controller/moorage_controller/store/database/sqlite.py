"""Cancellation-safe SQLite driver: no call continues and no lock remains after its caller was cancelled."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite

T = TypeVar("T")

_BATCH_SIZE = 64


class Connection(aiosqlite.Connection):
    """A connection that finishes every call before a cancellation of its caller takes effect.

    With plain aiosqlite the call continues in its thread: a late BEGIN IMMEDIATE would lock out all other writers.
    """

    async def _execute(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - whatever fn takes
        return await run_uncancelled(super()._execute(fn, *args, **kwargs))  # type: ignore[no-untyped-call]  # untyped library

    async def close(self) -> None:
        """Roll back and close: SQLite keeps a closed connection's lock while a cursor of it is referenced."""
        if self._connection is not None:
            await self._execute(self._connection.rollback)
        await super().close()


async def connect(path: str) -> Connection:
    """Open a database file; create it if it doesn't exist."""
    connection = Connection(partial(_open, path), _BATCH_SIZE)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does: it must not keep the program from ending
    try:
        await run_uncancelled(_opened(connection))
    except asyncio.CancelledError:
        await connection.close()
        raise
    return connection


def _open(path: str) -> sqlite3.Connection:
    # Mode 0600 from the start, regardless of the umask; SQLite uses the same mode for its -wal and -shm files.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, check_same_thread=False)


async def _opened(connection: Connection) -> None:
    await connection


async def run_uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; a cancellation takes effect only after it is finished."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio logs no warning
        raise
