"""Disks of a lab host that are full, small, or mounted noexec."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moorage_lab.programs.sshd import PrivateSshd


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(b"x" * 4096):
            pass


@contextmanager
def small_disk(sshd: PrivateSshd, place: Path, options: str = "size=256k") -> Iterator[Path]:
    """Mount a small disk at `place`, in the mount namespace of the lab's sshd."""
    about = place.stat()
    options = f"{options},uid={about.st_uid},gid={about.st_gid},mode=0700"
    inside = ["nsenter", "--target", str(sshd.process.pid), "--mount", "--"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", options, "none", place], check=True)
    try:
        yield Path(f"/proc/{sshd.process.pid}/root{place}")
    finally:
        subprocess.run([*inside, "umount", "--lazy", place], check=True)
