"""Free space of the disk with a host's journal: the warnings before it is full, and when it is."""

from dataclasses import dataclass

_MIB = 1 << 20
_LEAST_BYTES = 64 * _MIB
_ENOUGH_BYTES = 1024 * _MIB
"""A large disk with a small percentage left isn't nearly full."""
_LEAST_PART = 0.05
_LEAST_FILES = 1000
_STEPS = (10, 20, 40, 64, 128, 256, 512, 1024)
"""MiB: rounded, because an exact figure would cause an update after each write."""


@dataclass(frozen=True, slots=True)
class Room:
    """Free space of a file system for non-root users; sizes in bytes. A file count of zero means no limit."""

    free: int
    size: int
    free_files: int
    files: int


def room_problem(place: str, room: Room) -> str:
    """Return one sentence if the disk with the folder `place` is nearly full, empty if it isn't."""
    if room.free < max(_LEAST_BYTES, min(room.size * _LEAST_PART, _ENOUGH_BYTES)):
        left = f"{next(step for step in _STEPS if room.free < step * _MIB)} MiB left"
    elif room.files > 0 and room.free_files < _LEAST_FILES:
        left = f"{_LEAST_FILES} files left"
    else:
        return ""
    return f"The disk with {place} has less than {left}: free space there, or no app can be started on this host soon."


def full_problem(place: str, reason: str) -> str:
    """Return the sentence for a folder that isn't writable, with the operating system's reason."""
    return (
        f"Nothing can be written in {place} on the host ({reason}), so no app can be started there; apps can be "
        "stopped all the same."
    )
