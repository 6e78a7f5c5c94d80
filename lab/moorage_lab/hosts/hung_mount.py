"""A hanging file system: a real FUSE mount whose server reads every request and answers none.

Every access blocks, and not even SIGKILL ends that, as with an NFS server that is gone.
"""

import ctypes
import os
import select
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_FORCE, _MNT_DETACH = 1, 2
_INIT = 26
_HEAD = struct.Struct("<IIQQIIII")
"""The header of a request: length, opcode, request number, inode, user, group, process, padding."""


class HungMount:
    """Covers `place` with a hanging mount, in the mount namespace of the process `inside`."""

    def __init__(self, place: Path, inside: int) -> None:
        self._place = place
        self._namespace = ["nsenter", f"--mount=/proc/{inside}/ns/mnt", "--"]
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Mount it."""
        argv = [*self._namespace, sys.executable, "-I", __file__, str(self._place)]
        self._server = subprocess.Popen(  # noqa: S603 - an argv of the lab's own making
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"mounted\n":
            self.end()
            raise RuntimeError("A FUSE file system can't be mounted here: it needs root and /dev/fuse.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount it: blocked accesses fail with an error."""
        self.end()

    def end(self) -> None:
        """Unmount it, if it is mounted."""
        server, self._server = self._server, None
        if server is None:
            return
        server.communicate(timeout=10)


def main(place: str) -> None:
    """Mount, hang until EOF of standard input, and unmount."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"hung", os.fsencode(place), b"fuse", _MS_NOSUID | _MS_NODEV, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
    try:
        _answer_init(device)
        sys.stdout.write("mounted\n")
        sys.stdout.flush()
        _hang(device)
    finally:
        libc.umount2(os.fsencode(place), _MNT_FORCE | _MNT_DETACH)
        os.close(device)


def _answer_init(device: int) -> None:
    question = os.read(device, 1 << 17)
    _, opcode, number, *_ = _HEAD.unpack_from(question)
    assert opcode == _INIT
    # major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, and what is unused
    body = struct.pack("<IIIIHHII36x", 7, 31, 65536, 0, 16, 12, 65536, 1)
    os.write(device, struct.pack("<IiQ", 16 + len(body), 0, number) + body)


def _hang(device: int) -> None:
    """Read each request, so that only an answer, or the end of the mount, unblocks its caller."""
    while True:
        ready, _, _ = select.select([device, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        with suppress(OSError):
            os.read(device, 1 << 17)


if __name__ == "__main__":
    main(sys.argv[1])
