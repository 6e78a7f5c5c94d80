"""Files to a host, by SFTP, as long as there is progress."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh

_BLOCK = 256 * 1024
NO_PROGRESS_SECONDS = 30.0

Progress = Callable[[int], Awaitable[None]]
"""Told how many bytes have arrived."""


async def _quietly(arrived: int) -> None:
    del arrived


async def send(sftp: asyncssh.SFTPClient, content: bytes, path: str, progress: Progress = _quietly) -> None:
    """Write a new file, for its owner alone. Raises TimeoutError without progress for 30 seconds, SFTPError."""
    async with asyncio.timeout(NO_PROGRESS_SECONDS) as limit:
        loop = asyncio.get_running_loop()
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        file = await sftp.open(path, flags, encoding=None)
        async with file:
            for start in range(0, len(content), _BLOCK):
                await file.write(content[start : start + _BLOCK], start)
                limit.reschedule(loop.time() + NO_PROGRESS_SECONDS)
                await progress(min(start + _BLOCK, len(content)))
