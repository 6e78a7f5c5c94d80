"""Disks of a lab host that are full, small, or mounted noexec."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from full_disks import SmallDisk
from moorage_lab.programs.sshd import PrivateSshd


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(b"x" * 4096):
            pass


@contextmanager
def small_disk(sshd: PrivateSshd, place: Path, options: str = "size=256k") -> Iterator[Path]:
    """Mount a small disk at `place`, in the mount namespace of the lab's sshd."""
    with SmallDisk(place, sshd.inside, options):
        yield Path(f"/proc/{sshd.process.pid}/root{place}")
