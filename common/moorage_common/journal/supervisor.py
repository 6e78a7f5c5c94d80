"""The pipe between `Journal.launch` and the supervisor of one operation."""

import asyncio
import contextlib
import functools
import hashlib
import importlib.resources
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Self

from moorage_common.journal.files import JournalError

_PATIENCE = 30.0
"""Seconds for one answer of the supervisor; it does a few small synced writes in between."""


@functools.cache
def script_text(*names: str) -> str:
    """Return scripts of the journal, one after the other, as the text for a shell."""
    package = importlib.resources.files(__package__)
    return "".join(package.joinpath(name).read_text(encoding="utf-8") for name in names)


def supervisor_text() -> str:
    """Return the supervisor as the text for `/bin/sh -c`; its head documents its arguments and answers."""
    return script_text("records.sh", "supervisor.sh")


def lock_name(kind: str, subject: str) -> str:
    """Return the name of a lock file: kind is `directory` (subject: its real path) or `project` (its name)."""
    return f"{kind}-{hashlib.sha256(os.fsencode(subject)).hexdigest()}"


class Supervisor:
    """A started supervisor, until it has reported that the command runs, or has ended.

    Closing the pipe before `go` was sent leaves nothing running; closing it afterwards changes nothing.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, errors: socket.socket) -> None:
        self._reader = reader
        self._writer = writer
        self._errors = errors
        self._complaints = b""

    @classmethod
    async def start(cls, argv: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Start the process. Raises OSError."""
        ours, errors = await asyncio.to_thread(_spawn, argv, environment)
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            errors.close()
            raise
        return cls(reader, writer, errors)

    async def word(self) -> str:
        """Return the next line, empty at EOF. Raises JournalError past the time limit."""
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await self._reader.readline()
        except TimeoutError as error:
            raise JournalError(
                "journal_unavailable",
                "The journal on the host doesn't answer: its disk may hang. Look there, then ask again.",
            ) from error
        except ConnectionError:
            return ""
        return line.decode(errors="replace").rstrip("\n")

    async def say(self, line: str) -> None:
        """Send one line. If the supervisor has ended, the next `word` notices."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(line.encode() + b"\n")
            await self._writer.drain()

    async def leave(self) -> None:
        """Close the supervisor's input, and return when it has released its locks."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        while await self.word():
            pass

    def close(self) -> None:
        """Close the pipe immediately."""
        with contextlib.suppress(OSError):
            self._complaints = self._errors.recv(1 << 16)
        self._writer.close()
        self._errors.close()

    @property
    def complaint(self) -> str:
        """The last line of its standard error when the pipe was closed."""
        lines = self._complaints.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def _spawn(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[socket.socket, socket.socket]:
    """Start the process in its own session.

    Not with asyncio's subprocess: its transport kills the child when it is closed or garbage-collected, as at the end
    of the loop, and the operation has to outlive this process.
    """
    ours, theirs = socket.socketpair()
    errors, their_errors = socket.socketpair()
    try:
        with theirs, their_errors:
            process = subprocess.Popen(  # noqa: S603 - an argv, never a shell string
                argv,
                env=environment,
                cwd="/",
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=their_errors.fileno(),
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        errors.close()
        raise
    ours.settimeout(0)
    errors.settimeout(0)
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return ours, errors
