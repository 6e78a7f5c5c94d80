"""Upload of files to the standard input of a shell on a host, limited by progress: not every host has SFTP."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from moorage_common.untrusted import UntrustedError, clean_line, number_text

from moorage_controller.hosts.ssh.session.shell import FramedScript, Process, ScriptError, Sessions, lost, lost_errors
from moorage_controller.hosts.transport import ContactLostError

_BLOCK = 64 * 1024
_REASON_CHARACTERS = 200
NO_PROGRESS_SECONDS = 30.0
_CHECKSUM_SECONDS = 240.0
"""After the last byte, a slow disk needs time to read and sync the file."""

Progress = Callable[[int], Awaitable[None]]
"""Called with the number of bytes that have arrived."""


class UploadFailedError(Exception):
    """The host can't store the file; `str()` is the host's reason, not a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(clean_line(reason, _REASON_CHARACTERS))


async def send(sessions: Sessions, script: str, content: bytes, progress: Progress | None = None) -> None:
    """Run a script that ends with `mo_receive`, and send it the content. Raises UploadFailedError, ContactLostError.

    It resumes an upload that was cut off. Contact counts as lost after 30 seconds without progress.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit, sessions.open() as process:
            framed = FramedScript(process, sessions.pace)
            await framed.begin(script, sessions.login_shell_seconds)
            limit.reschedule(loop.time() + 2 * NO_PROGRESS_SECONDS)  # may wait for another upload of it
            writing: asyncio.Task[None] | None = None
            arrived = -1
            try:
                while (word := await framed.line()) != "whole":
                    arrived = _arrived(word, arrived, len(content))
                    if writing is None:
                        writing = asyncio.create_task(_write(process, content, arrived))
                    most = NO_PROGRESS_SECONDS if arrived < len(content) else _CHECKSUM_SECONDS
                    limit.reschedule(loop.time() + most)
                    if progress is not None:
                        await progress(arrived)
            finally:
                if writing is not None:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
    except UntrustedError as error:
        raise sessions.end(error) from None
    except ScriptError as error:
        raise ContactLostError(f"The upload to the host broke off: {error.output or 'its shell ended'}.") from None
    except TimeoutError:
        raise ContactLostError(
            f"The upload to the host made no progress for {NO_PROGRESS_SECONDS:.0f} seconds: the network is too slow."
        ) from None
    except lost_errors as error:
        raise lost(error) from None


def _arrived(word: str, before: int, size: int) -> int:
    """Parse how many bytes have arrived. Raises UploadFailedError; UntrustedError for an invalid answer."""
    what, _, told = word.partition(" ")
    if what == "failed":
        raise UploadFailedError(told)
    if what != "have":
        raise UntrustedError("It answered an upload with something that isn't an answer.")
    arrived = number_text(told, 0, size)
    if arrived <= before:
        raise UntrustedError("It says again and again that it has as much of an upload as before.")
    return arrived


async def _write(process: Process, content: bytes, start: int) -> None:
    with suppress(*lost_errors):
        for offset in range(start, len(content), _BLOCK):
            process.stdin.write(content[offset : offset + _BLOCK])
            await process.stdin.drain()
        process.stdin.write_eof()
