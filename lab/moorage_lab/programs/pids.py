"""A process by id and start time, so that a signal never hits another process that reused the id."""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from moorage_lab.waiting import INTERVAL

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE = 0
_PARENT = 1
_STARTED = 19
"""Places in /proc/PID/stat after the name in brackets: fields 3, 4 and 22 of proc(5)."""


@dataclass(frozen=True, slots=True)
class Pid:
    """One process of one boot. `started` is in clock ticks since that boot."""

    id: int
    started: int
    boot: str

    @classmethod
    def of(cls, number: int) -> "Pid | None":
        """Return the process that has that id now; None if there is none."""
        stat = _stat(number)
        return None if stat is None else cls(number, int(stat[_STARTED]), _boot())

    @classmethod
    def own(cls) -> "Pid":
        """Return the current process."""
        own = cls.of(os.getpid())
        if own is None:
            raise RuntimeError("/proc doesn't show this very process: the lab needs Linux with /proc mounted.")
        return own

    @classmethod
    def read(cls, record: Path) -> "Pid | None":
        """Return the process in a record file; None if it is missing or truncated."""
        try:
            return cls(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: Path) -> None:
        """Write the record file, for a clean-up after a crash."""
        record.write_text(json.dumps(asdict(self)))

    @property
    def alive(self) -> bool:
        """Whether this same process still runs; a zombie doesn't."""
        stat = _stat(self.id)
        return stat is not None and stat[_STATE] != "Z" and int(stat[_STARTED]) == self.started and self.boot == _boot()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.id, number)

    def pause(self) -> None:
        """Suspend it (SIGSTOP) until `go_on`."""
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume it (SIGCONT) after a `pause`."""
        self.send(signal.SIGCONT)

    def end(self, *, grace: float) -> None:
        """Send TERM, and KILL after `grace` seconds. Returns when it is gone."""
        self.send(signal.SIGTERM)
        if not self.gone_within(grace):
            self.send(signal.SIGKILL)
            self.gone_within(grace)

    def gone_within(self, seconds: float) -> bool:
        """Wait for its end, that many seconds at most; return whether it has ended."""
        limit = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() >= limit:
                return False
            time.sleep(INTERVAL)
        return True


def descendants(of: Pid) -> list[Pid]:
    """Return all its descendants; parents first."""
    children: dict[int, list[int]] = {}
    for number in _all():
        stat = _stat(number)
        if stat is not None:
            children.setdefault(int(stat[_PARENT]), []).append(number)
    found: list[Pid] = []
    queue = list(children.get(of.id, ()))
    while queue:
        number = queue.pop(0)
        pid = Pid.of(number)
        if pid is not None:
            found.append(pid)
        queue.extend(children.get(number, ()))
    return found


def with_argument(argument: str) -> list[Pid]:
    """Return the processes that have exactly this argument."""
    found: list[Pid] = []
    for number in _all():
        with suppress(OSError):
            if argument.encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                pid = Pid.of(number)
                if pid is not None:
                    found.append(pid)
    return found


def _all() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _stat(number: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
