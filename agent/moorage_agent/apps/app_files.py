"""Files and directories of apps, opened so that a concurrent change by the app can't redirect the access."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from moorage_common.compose.files import Ask, Found, Kind, Walk, Walked
from moorage_common.compose.yaml_nodes import FILE_BYTES

_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
Stamp = tuple[int, int, int]
"""A file's time of change, inode and size: another one after each change."""


@contextmanager
def opened(real: str) -> Iterator[int]:
    """Open a resolved path as a handle (O_PATH), one component after the other.

    Raises OSError if it doesn't exist, or if a component has become a symlink.
    """
    handle = os.open("/", _HANDLE | os.O_DIRECTORY)
    try:
        for component in Path(real).parts[1:]:
            inner = os.open(component, _HANDLE, dir_fd=handle)
            os.close(handle)
            handle = inner
            if stat.S_ISLNK(os.fstat(handle).st_mode):
                raise OSError(errno.ELOOP, "a symbolic link", real)
        yield handle
    finally:
        os.close(handle)


def run_walk(walk: Walk) -> Walked:
    """Run a walk through compose files on this host."""
    try:
        asks = next(walk)
        while True:
            asks = walk.send(_read_paths(asks))
    except StopIteration as ended:
        walked: Walked = ended.value
        return walked


def stamp(file: str, *, follow: bool = True) -> Stamp | None:
    """Return the stamp of a file; None if there is none. `follow` is whether a symlink counts as its target."""
    try:
        about = Path(file).stat(follow_symlinks=follow)
    except (OSError, ValueError):
        return None
    return about.st_ctime_ns, about.st_ino, about.st_size


def _read_paths(asks: Sequence[Ask]) -> Mapping[str, Found]:
    return {ask.path: _found(ask) for ask in asks}


def _found(ask: Ask) -> Found:
    real = os.path.realpath(ask.path)
    try:
        with opened(real) as handle:
            mode = os.fstat(handle).st_mode
            if stat.S_ISDIR(mode):
                return Found(Kind.DIRECTORY, real)
            if not stat.S_ISREG(mode):
                return Found(Kind.OTHER, real)
            return Found(Kind.FILE, real, _content(handle) if ask.content else None)
    except (FileNotFoundError, NotADirectoryError):
        return Found(Kind.NOTHING, real)
    except OSError:
        # Changed during the lookup, too long, or a loop of symlinks: not a valid file of an app.
        return Found(Kind.OTHER, real)


def _content(handle: int) -> bytes | None:
    try:
        # Through the handle: the name may refer to another file by now.
        with Path(f"/proc/self/fd/{handle}").open("rb") as file:
            return file.read(FILE_BYTES + 1)
    except PermissionError:
        return None
