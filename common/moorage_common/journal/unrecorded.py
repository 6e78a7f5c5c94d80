"""Stops that run without a journal, because the host's isn't writable: its disk is full or read-only.

Only the process that runs such a stop has its record. If that process ends, the stop may be sent again, which does no
harm. A repeated start could, so no start runs without a journal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from moorage_common.journal.supervisor import lock_name, script_text
from moorage_common.journal.types import Guard, Order, Record, State

log = structlog.get_logger(__name__)

Execute = Callable[[Sequence[str], Mapping[str, str], Callable[[bytes], None]], Awaitable[int]]
"""Runs an argv in `/` with exactly that environment, passes its output on, and returns its exit code."""

_MOST_OUTPUT = 1 << 20
_MOST_KEPT = 200
_BUSY = {
    b"busy directory": ("directory_busy", "Another operation works in this directory: wait for its end and try again."),
    b"busy project": (
        "project_busy",
        "Another operation works on this Compose project: wait for its end and try again.",
    ),
}


@dataclass
class _Run:
    order: Order
    why: bytes
    output: bytearray = field(default_factory=bytearray)
    word: bytearray = field(default_factory=bytearray)
    begun: bool = False
    state: State = State.RUNNING
    exit_code: int | None = None
    refusal: tuple[str, str] = ("", "")

    def take(self, data: bytes) -> None:
        """Take output of the stop: the script's own line comes first."""
        if not self.begun:
            word, end, data = (bytes(self.word) + data).partition(b"\n")
            self.word[:] = word
            if not end:
                return
            self.begun = True
            if bytes(word) not in _BUSY:
                self.output += self.why
        self.output += data[: max(_MOST_OUTPUT - len(self.output), 0)]


class Unrecorded:
    """The stops that this process runs itself, and the operations it buried. The last 200 ended ones are kept."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._buried: dict[str, Record] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def read(self, operation_id: str) -> Record | None:
        """Return the record of an operation, None if it is none of these."""
        run = self._runs.get(operation_id)
        if run is None:
            return self._buried.get(operation_id)
        return Record(
            operation_id, run.state, run.order.spec, run.exit_code, len(run.output), "", run.refusal[0], run.refusal[1]
        )

    def read_output(self, operation_id: str, after: int, limit: int) -> bytes:
        """Return at most `limit` bytes of the output from the byte offset `after` on."""
        run = self._runs.get(operation_id)
        return b"" if run is None else bytes(run.output[after : after + limit])

    async def launch(self, order: Order, guard: Guard, locks: str, why: str, execute: Execute) -> None:
        """Run a stop; `locks` is the folder of the journal's locks, `why` the sentence with the journal's failure.

        Raises Refused with the guard's refusal, and the guard's own exceptions: then nothing runs.
        """
        refusal = await guard()
        if refusal is not None:
            raise refusal
        if order.operation_id in self._runs:
            return
        log.warning("stop_without_journal", operation_id=order.operation_id, reason=why)
        run = self._runs[order.operation_id] = _Run(order, f"{why} This stop runs without a journal.\n".encode())
        task = asyncio.create_task(self._follow(run, execute(_argv(order, locks), order.environment, run.take)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tombstone(self, operation_id: str, code: str, reason: str) -> None:
        """Bury an operation that never began, within this process only."""
        self._buried[operation_id] = Record(operation_id, State.BURIED, {}, None, 0, "", code, reason)
        _forget(self._buried, list(self._buried))

    async def _follow(self, run: _Run, execution: Awaitable[int]) -> None:
        operation_id = run.order.operation_id
        try:
            code = await execution
        except Exception as error:  # noqa: BLE001 - after any failure it is unknown again, so that it is sent again
            log.warning("stop_without_journal_lost", operation_id=operation_id, error=str(error))
            self._runs.pop(operation_id)
            return
        run.refusal = _BUSY.get(bytes(run.word), ("", ""))
        if run.refusal[0]:
            run.state = State.BURIED
        else:
            run.state, run.exit_code = State.EXITED, code
        log.info("stop_without_journal_ended", operation_id=operation_id, exit_code=code, state=run.state.value)
        _forget(self._runs, [key for key, each in self._runs.items() if each.state is not State.RUNNING])


def _argv(order: Order, locks: str) -> list[str]:
    directory_lock = f"{locks}/{lock_name('directory', order.app_directory)}"
    project_lock = "" if order.project is None else f"{locks}/{lock_name('project', order.project)}"
    return ["/bin/sh", "-c", script_text("unrecorded.sh"), "moorage-stop", directory_lock, project_lock, *order.argv]


def _forget(kept: dict[str, _Run] | dict[str, Record], ended: Sequence[str]) -> None:
    for key in ended[:-_MOST_KEPT]:
        kept.pop(key)
