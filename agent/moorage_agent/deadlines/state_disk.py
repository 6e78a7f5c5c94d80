"""The disk with the agent's state: checked periodically with a test write."""

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

import structlog
from moorage_common.journal.disk_room import Room, full_problem, room_problem

from moorage_agent.listeners import Listeners

log = structlog.get_logger(__name__)

_ASK_SECONDS = 5.0
_PROBE_BYTES = 1 << 16


class StateDisk(Listeners):
    """The state of the disk with the agent's state folder.

    `problem` is one sentence, empty if there is none; `keeps` is whether the folder is writable.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.problem = ""
        self.keeps = True

    async def run(self) -> None:
        """Check periodically, until cancelled."""
        while True:
            before = self.problem
            await asyncio.to_thread(self.check)
            if self.problem != before:
                log.warning("state_disk", problem=self.problem or "none any more")
                self._notify_listeners()
            await asyncio.sleep(_ASK_SECONDS)

    def check(self) -> None:
        """Check now."""
        refused = _refused(self._folder)
        self.keeps = not refused
        self.problem = refused or _refused(self._folder / "operations") or self._room()

    def _room(self) -> str:
        about = os.statvfs(self._folder)
        room = Room(about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize, about.f_favail, about.f_files)
        return room_problem(str(self._folder), room)


def _refused(folder: Path) -> str:
    """Return why a folder isn't writable, empty if it is."""
    # A unique name: other users may write in the journal's folders.
    probe = folder / f".room-{secrets.token_hex(8)}"
    try:
        try:
            with os.fdopen(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
                for _ in range(_PROBE_BYTES // 4096):
                    file.write(bytes(4096))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    except OSError as error:
        return full_problem(str(folder), error.strerror or str(error))
    return ""
