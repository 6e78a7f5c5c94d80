"""Files that are written whole or not at all, and are on disk then."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file by way of a temporary one beside it: after a crash there is the old file or the whole new one.

    The new one is on disk before this returns. `mode` is the permission bits, whatever the umask; a missing folder is
    made with mode 0700. Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder to disk: a new, renamed or removed file is a change of its folder. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
