"""The warning about free space on a host's disk."""

import pytest
from moorage_common.journal.disk_room import Room, room_problem

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("room", "told"),
    [
        (Room(63 * MIB, 10 * GIB, 10**6, 10**6), "less than 64 MiB left:"),
        (Room(5 * MIB, 10 * GIB, 10**6, 10**6), "less than 10 MiB left:"),
        (Room(0, 0, 0, 0), "less than 10 MiB left:"),
        (Room(400 * MIB, 10 * GIB, 10**6, 10**6), "less than 512 MiB left:"),
        (Room(600 * MIB, 10 * GIB, 10**6, 10**6), ""),
        (Room(1023 * MIB, 4 * TIB, 10**6, 10**6), "less than 1024 MiB left:"),
        (Room(2 * GIB, 4 * TIB, 10**6, 10**6), ""),
        (Room(2 * GIB, 4 * TIB, 999, 10**6), "less than 1000 files left:"),
        (Room(2 * GIB, 4 * TIB, 0, 0), ""),
    ],
)
def test_nearly_full_disk_is_reported_in_advance(room: Room, told: str) -> None:
    problem = room_problem("/var/lib/moorage", room)
    assert bool(problem) == bool(told)
    assert told in problem
    assert problem.startswith("The disk with /var/lib/moorage has " if told else "")
