"""Disks for one test: without free bytes, without free inodes, or read-only."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from moorage_lab.waiting import eventually

FULL = ("bytes", "files", "read-only")
"""The ways in which a disk takes nothing."""
_ROOMY = "size=256m,nr_inodes=100000,rw"


class SmallDisk:
    """A tmpfs over an empty folder, with its owner and mode; `inside` is a prefix for commands run there."""

    def __init__(self, folder: Path, inside: Sequence[str] = (), options: str = _ROOMY) -> None:
        self.folder = folder
        self._inside = inside
        self._options = options

    def __enter__(self) -> Self:
        """Mount it."""
        about = self.folder.stat()
        owner = f"uid={about.st_uid},gid={about.st_gid},mode={about.st_mode & 0o7777:o}"
        self.run("mount", "-t", "tmpfs", "-o", f"{self._options},{owner}", "none", str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount it once no process uses it."""
        self.run("umount", "--lazy", str(self.folder))

    @contextmanager
    def full(self, way: str) -> Iterator[None]:
        """Make it full in the given way until the context ends."""
        eventually(lambda: self._fills(way), timeout=20, what=f"a full disk ({way})")
        try:
            yield
        finally:
            self.remount(self._options)

    def _fills(self, way: str) -> bool:
        """Fill it; False where another process used space or wrote meanwhile."""
        told = self.run("stat", "-f", "-c", "%S %b %f %c %d", self.folder)
        size, blocks, free, files, free_files = map(int, told.split())
        used = {"bytes": f"size={(blocks - free) * size}", "files": f"nr_inodes={files - free_files}"}
        try:
            self.remount(used.get(way, "ro"))
        except subprocess.CalledProcessError:
            return False
        return True

    def remount(self, options: str) -> None:
        """Give it other options."""
        self.run("mount", "-o", f"remount,{options}", str(self.folder))

    def run(self, *argv: object) -> str:
        """Run a command where the disk is mounted; return what it printed."""
        done = subprocess.run([*self._inside, *map(str, argv)], check=True, capture_output=True, text=True)
        return done.stdout


@contextmanager
def covered(folder: Path) -> Iterator[None]:
    """Mount an empty, full disk over a folder."""
    with SmallDisk(folder) as disk, disk.full("files"):
        yield
