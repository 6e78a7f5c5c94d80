"""The files of one operation in the journal: safe opening, and the format of their records.

Each record is one line of fixed length with an end mark, so that a torn record is recognizable. Every file is opened
relative to an open folder and without following symlinks: a member of the journal's group must not be able to
redirect root. `supervisor.sh` writes and reads the same files.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

FOLDER_MODE = 0o2770
FILE_MODE = 0o660
WHO_BYTES = 255
"""Bytes for the canceller's name; the file has one more."""

_READ_LIMIT = 1 << 20
_EXIT = re.compile(rb"1 (exited|lost  |buried) (\d{3}) (\d{20}) end\n")
_PID = re.compile(rb"1 (\d{10}) (\d{20}) end\n")


class JournalError(Exception):
    """A failure of the journal; `str()` is one sentence, `code` is journal_full or journal_unavailable."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    @classmethod
    def from_os(cls, error: OSError, place: str) -> "JournalError":
        """Translate an OSError at `place` (a folder)."""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return full_disk(place)
        return cls("journal_unavailable", f"The journal in {place} can't be used: {error.strerror or error}.")


def full_disk(place: str) -> JournalError:
    """Return the error of a full disk."""
    return JournalError("journal_full", f"The disk of the journal on the host is full: free space under {place}.")


class Ending(StrEnum):
    """The first word of an exit record."""

    EXITED = "exited"
    LOST = "lost"
    BURIED = "buried"


@dataclass(frozen=True, slots=True)
class Exit:
    """An accepted exit record: `length` is that of the output in bytes."""

    ending: Ending
    exit_code: int
    length: int


@dataclass(frozen=True, slots=True)
class CommandProcess:
    """The command's process, leader of its process group; `started` is field 22 of /proc/PID/stat."""

    pid: int
    started: int


def open_folder(name: str, parent: int | None = None) -> int:
    """Open a folder; its last component must not be a symlink. Raises OSError."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def open_file(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file of the folder; anything else is an error. Raises OSError."""
    if flags & os.O_CREAT:
        with contextlib.suppress(FileExistsError):
            made = os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=folder)
            os.fchmod(made, FILE_MODE)  # regardless of the umask: the journal's group shares it
            return made
    # O_NONBLOCK: a FIFO put there must not block the reader.
    opened = os.open(name, flags & ~os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, f"{name} is not a regular file")
    return opened


def read_file(folder: int, name: str) -> bytes | None:
    """Return the content (1 MiB at most), None if there is no such file."""
    try:
        opened = open_file(folder, name)
    except FileNotFoundError:
        return None
    with open(opened, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        return file.read(_READ_LIMIT)


def exists(folder: int, name: str) -> bool:
    """Return whether the name exists, as any kind of file."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def replace_file(folder: int, name: str, content: bytes, *, reserved: str | None = None) -> None:
    """Replace a file atomically; it is on disk before this returns.

    `reserved` names a preallocated file that is overwritten for it, in place: that works on a full disk too.
    """
    temporary = f".{name}-{secrets.token_hex(8)}"
    if reserved is not None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(reserved, temporary, src_dir_fd=folder, dst_dir_fd=folder)
    opened = open_file(folder, temporary, os.O_RDWR | os.O_CREAT)
    try:
        _write(opened, content)
        os.ftruncate(opened, len(content))
        os.fsync(opened)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(opened)
    os.fsync(folder)


def _write(opened: int, content: bytes) -> None:
    if os.pwrite(opened, content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a disk that fills up causes a short write


def output_length(folder: int) -> int:
    """Return the number of bytes the command has printed so far."""
    try:
        opened = open_file(folder, "out")
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(opened).st_size
    finally:
        os.close(opened)


def read_exit(folder: int) -> Exit | None:
    """Return the exit record, None if it is missing or torn, or if the output is shorter than it says."""
    record = parse_exit(read_file(folder, "exit") or b"")
    return record if record is not None and output_length(folder) >= record.length else None


def parse_exit(line: bytes) -> Exit | None:
    """Parse an exit record; None for a torn one."""
    found = _EXIT.fullmatch(line)
    return None if found is None else Exit(Ending(found[1].decode().strip()), int(found[2]), int(found[3]))


def write_exit(folder: int, ending: Ending) -> Exit:
    """Write the exit record of an operation whose command didn't exit; the caller holds the lock. Raises OSError."""
    record = Exit(ending, 0, output_length(folder))
    line = f"1 {ending:<6} 000 {record.length:020d} end\n".encode()
    replace_file(folder, "exit", line, reserved="exit.new")
    return record


def write_tombstone(folder: int, code: str, reason: str) -> Exit:
    """Bury the operation; the caller holds the lock. Raises OSError."""
    replace_file(folder, "reason", f"{code}\n{one_line(reason)}\n".encode())
    return write_exit(folder, Ending.BURIED)


def settle(folder: int) -> Exit | None:
    """Return the end of an operation whose lock the caller holds, None if it never began.

    An operation that began and has no complete exit record is lost, and recorded as such; on a full disk it is lost
    without a record, since `start` stays.
    """
    found = read_exit(folder)
    if found is not None or not (exists(folder, "start") or exists(folder, "exit")):
        return found
    try:
        return write_exit(folder, Ending.LOST)
    except OSError:
        return Exit(Ending.LOST, 0, output_length(folder))


def read_reason(folder: int) -> tuple[str, str]:
    """Return the code and the sentence of a buried operation."""
    code, _, sentence = (read_file(folder, "reason") or b"").decode(errors="replace").partition("\n")
    return code, sentence.strip()


def write_cancelled(folder: int, by: str) -> None:
    """Record the name of the canceller; the first one is kept. Raises OSError."""
    who = one_line(by).encode()[:WHO_BYTES].decode(errors="ignore").encode()
    try:
        if not exists(folder, "cancelled"):
            replace_file(folder, "cancelled", who.ljust(WHO_BYTES) + b"\n", reserved="cancelled.new")
    except OSError:
        # A concurrent cancel may have used the reserved file.
        if not exists(folder, "cancelled"):
            raise


def read_cancelled(folder: int) -> str:
    """Return the name of the canceller, empty if the operation wasn't cancelled."""
    return (read_file(folder, "cancelled") or b"").decode(errors="replace").strip()


def read_process(folder: int) -> CommandProcess | None:
    """Return the process that the command recorded, None before that."""
    found = _PID.fullmatch(read_file(folder, "pid") or b"")
    return None if found is None else CommandProcess(int(found[1]), int(found[2]))


def start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - one unbuffered read, in bytes
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(line.rpartition(b") ")[2].split()[19])


def signal_command(folder: int, number: signal.Signals) -> bool:
    """Signal the command's process group; False if the command is gone, or its pid is another process's.

    Only for an operation whose lock is held. Raises OSError.
    """
    process = read_process(folder)
    if process is None or start_time(process.pid) != process.started:
        return False
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def one_line(text: str) -> str:
    """Return the text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@contextlib.contextmanager
def held_lock(operations: int, name: str, folder: int) -> Iterator[bool]:
    """Try the operation's lock without waiting; yields whether it was acquired.

    The lock of a folder removed meanwhile doesn't count. Raises OSError.
    """
    try:
        opened = open_file(folder, "lock", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        opened = open_file(folder, "lock")
    try:
        yield _flock(opened) and _same_file(operations, f"{name}/lock", opened)
    finally:
        os.close(opened)


def _flock(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(folder: int, path: str, opened: int) -> bool:
    try:
        there = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(opened))
