"""How much room the disk with a host's journal has: what people are told before it is full, and when it is."""

from dataclasses import dataclass

_MIB = 1 << 20
_LEAST_BYTES = 64 * _MIB
_ENOUGH_BYTES = 1024 * _MIB
"""A large disk isn't nearly full when a small part of it is left."""
_LEAST_PART = 0.05
_LEAST_FILES = 1000
_STEPS = (10, 20, 40, 64, 128, 256, 512, 1024)
"""MiB: a figure that changed with every write would be news each time."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left for others than root; sizes in bytes. Without a count of files it has no limit."""

    free: int
    size: int
    free_files: int
    files: int


def room_problem(place: str, room: Room) -> str:
    """Return one sentence where the disk with the folder `place` is nearly full, empty where it isn't."""
    if room.free < max(_LEAST_BYTES, min(room.size * _LEAST_PART, _ENOUGH_BYTES)):
        left = f"{next(step for step in _STEPS if room.free < step * _MIB)} MiB left"
    elif room.files > 0 and room.free_files < _LEAST_FILES:
        left = f"{_LEAST_FILES} files left"
    else:
        return ""
    return f"The disk with {place} has less than {left}: free space there, or no app can be started on this host soon."


def full_problem(place: str, reason: str) -> str:
    """Return the sentence of a folder that takes nothing at all, for a reason in the operating system's words."""
    return (
        f"Nothing can be written in {place} on the host ({reason}), so no app can be started there; apps can be "
        "stopped all the same."
    )
