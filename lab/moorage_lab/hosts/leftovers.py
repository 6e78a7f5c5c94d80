"""Clean-up of a Docker Engine's leftovers on the machine: containers, mounts, bridges."""

import re
import signal
import subprocess
from pathlib import Path

from moorage_lab.programs.pids import descendants, with_argument

_KILL_LIMIT = 10.0
_BRIDGE = re.compile(rb"br-[0-9a-f]{12}")


def end_containers(containerd_socket: Path) -> None:
    """Kill the containers of one containerd, then the shims that hold them."""
    for shim in with_argument(str(containerd_socket)):
        held = descendants(shim)
        for pid in (*held, shim):
            pid.send(signal.SIGKILL)
        for pid in (*held, shim):
            pid.gone_within(_KILL_LIMIT)


def unmount_all(folder: Path) -> None:
    """Unmount everything below a folder, the innermost first."""
    below = f"{folder}/"
    for point in reversed(_mount_points()):
        if point.startswith(below):
            # lazily: an open file must not keep the mount visible
            subprocess.run(["/bin/umount", "-l", point], check=False, capture_output=True)  # noqa: S603  # no shell


def bridges_of(data_root: Path) -> list[str]:
    """Return the bridges of the networks an Engine has or had, read directly from its database.

    The names have random ids, so each one found there belongs to that Engine alone.
    """
    try:
        database = (data_root / "network/files/local-kv.db").read_bytes()
    except FileNotFoundError:
        return []
    return sorted({name.decode() for name in _BRIDGE.findall(database)})


def _mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in lines]
