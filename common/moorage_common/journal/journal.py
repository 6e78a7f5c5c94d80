"""The journal of operations on a host: an operation outlives the connection and the process that started it.

    ROOT/operations/ID/   spec      the operation's description (JSON), opaque to the journal
                          lock      held while any process of the operation is alive
                          start     exists as soon as the command may have begun
                          pid       process id and start time of the command, the leader of its own process group
                          out       the command's output; its byte offset is the sequence number
                          cancelled name of the canceller
                          exit      the end: exited, lost (power cut, everything killed) or buried (never runs)
                          reason    code and sentence of a buried operation
    ROOT/locks/           one file per real directory and one per Compose project, held while an operation works there

The lock, not a pid, shows whether an operation is alive. An operation that may have begun is never run again.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from moorage_common.journal import files
from moorage_common.journal.files import Ending, Exit, JournalError, full_disk
from moorage_common.journal.supervisor import Supervisor, lock_name, supervisor_text
from moorage_common.journal.types import (
    SPEC_BYTES,
    CancelOutcome,
    Guard,
    Launch,
    Order,
    Record,
    Refused,
    State,
    check_code,
    check_id,
)
from moorage_common.untrusted import parse_json

__all__ = [
    "CancelOutcome",
    "Guard",
    "Journal",
    "JournalError",
    "Launch",
    "Order",
    "Record",
    "Refused",
    "State",
    "lock_name",
    "supervisor_text",
]

_SHARED_FOLDER_MODE = 0o3770
_PATIENCE = 10.0
"""Seconds for another process to start or bury an operation whose lock it holds."""
_PAUSE = 0.02
_REMOVED = ".removed-"
_WORDS = frozenset({"started", "held", "ended", "buried", "busy directory", "busy project"})


class Journal:
    """The journal in the folder `root`.

    `group` is the id of the group that shares it. `launcher` is a prefix of the supervisor's argv, with `{id}` in it
    replaced by the operation's id: a command that executes the rest of its arguments.
    """

    def __init__(self, root: Path, *, group: int | None = None, launcher: Sequence[str] = ()) -> None:
        self._root = root
        self._group = group
        self._launcher = tuple(launcher)

    @property
    def locks(self) -> str:
        """The folder of the locks on directories and project names."""
        return str(self._root / "locks")

    def prepare(self) -> None:
        """Make the folders, or check the existing ones. Raises JournalError."""
        with self._os_errors():
            self._root.mkdir(parents=True, exist_ok=True)
            root = files.open_folder(str(self._root))
            try:
                for name in ("operations", "locks"):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=root)
                    self._set_rights(root, name)
            finally:
                os.close(root)

    async def launch(self, order: Order, guard: Guard | None = None) -> Launch:
        """Start the command, or attach to the operation with that id.

        Returns STARTED once `start` is on disk. Raises Refused if a lock is taken, the guard refused, or the operation
        was cancelled meanwhile: it is buried then. Raises JournalError if nothing was started, and the guard's own
        exceptions: then the same id may be launched again.
        """
        loop = asyncio.get_running_loop()
        patience = loop.time() + _PATIENCE
        while True:
            word = await self._attempt(order, guard)
            if word == "started":
                return Launch.STARTED
            record = await asyncio.to_thread(self.read, order.operation_id)
            if word in {"busy directory", "busy project", "buried"} and record is not None:
                raise Refused(record.code, record.reason)
            if record is not None:
                return Launch.ATTACHED if record.state is State.RUNNING else Launch.ENDED
            # Held, without a record yet: another caller's guard is running, or a reader holds the lock briefly.
            if loop.time() > patience:
                raise _undecided()
            await asyncio.sleep(5 * _PAUSE)

    def read(self, operation_id: str) -> Record | None:
        """Return the record, None for an operation that was never started here. Never waits.

        An operation that began, with a free lock and no exit record, is LOST, and is recorded as such.
        """
        with self._folder(operation_id) as (operations, folder):
            if folder is None or not (files.exists(folder, "start") or files.exists(folder, "exit")):
                return None
            found = files.read_exit(folder)
            if found is None:
                with files.held_lock(operations, operation_id, folder) as ours:
                    found = files.settle(folder) if ours else None
            return _record(operation_id, folder, found)

    def running(self) -> list[Record]:
        """Return the running operations, sorted by id; none before `prepare`. Raises JournalError."""
        try:
            names = sorted(path.name for path in (self._root / "operations").iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise JournalError.from_os(error, str(self._root)) from error
        found = []
        for name in names:
            with contextlib.suppress(ValueError):  # not an operation's folder
                found.append(self.read(name))
        return [record for record in found if record is not None and record.state is State.RUNNING]

    def read_output(self, operation_id: str, after: int, limit: int) -> bytes:
        """Return at most `limit` bytes of the output from the byte offset `after` on; empty if there is none yet."""
        if after < 0 or limit < 0:
            raise ValueError("offset and limit of an output can't be negative")
        with self._folder(operation_id) as (_, folder):
            if folder is None or not files.exists(folder, "out"):
                return b""
            opened = files.open_file(folder, "out")
            try:
                return os.pread(opened, limit, after)
            finally:
                os.close(opened)

    def cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Record the canceller, then send TERM to the command's process group; an unknown operation is buried.

        An operation that is being started ends before its command does anything. Waits one second at most.
        Raises JournalError.
        """
        patience = time.monotonic() + 1
        noted = False
        while True:
            with self._folder(operation_id, make=True) as (operations, folder):
                assert folder is not None
                found = _cancel_idle(operations, operation_id, folder, by) or files.read_exit(folder)
                if found is not None:
                    return _cancelled(found, before_it_began=noted)
                noted = noted or files.read_process(folder) is None
                try:
                    files.write_cancelled(folder, by)
                except OSError:
                    # The signal is sent even if the record can't be written.
                    if files.signal_command(folder, signal.SIGTERM):
                        return CancelOutcome.SIGNALLED
                    raise
                if files.signal_command(folder, signal.SIGTERM):
                    return CancelOutcome.SIGNALLED
                # Not begun: the starting command reads the record. Or just ended: then the exit record follows.
            if time.monotonic() > patience:
                return CancelOutcome.SIGNALLED if noted else CancelOutcome.ALREADY_ENDED
            time.sleep(_PAUSE)

    def kill(self, operation_id: str) -> bool:
        """Send KILL to the command's process group; False if there is no such process."""
        with self._folder(operation_id) as (operations, folder):
            if folder is None or not files.exists(folder, "start") or files.read_exit(folder) is not None:
                return False
            with files.held_lock(operations, operation_id, folder) as ours:
                if ours:
                    files.settle(folder)
                    return False
            return files.signal_command(folder, signal.SIGKILL)

    def tombstone(self, operation_id: str, code: str, reason: str) -> Record:
        """Prevent the operation from ever running; if it runs or ran, return its record.

        Waits for one that is being started, ten seconds at most. Raises JournalError.
        """
        check_code(code)
        patience = time.monotonic() + _PATIENCE
        while True:
            with self._folder(operation_id, make=True) as (operations, folder):
                assert folder is not None
                with files.held_lock(operations, operation_id, folder) as ours:
                    if ours:
                        found = files.settle(folder) or files.write_tombstone(folder, code, reason)
                        return _record(operation_id, folder, found)
            record = self.read(operation_id)
            if record is not None:
                return record
            if time.monotonic() > patience:
                raise _undecided()
            time.sleep(_PAUSE)

    def clean(self, older_than: timedelta, now: datetime) -> list[str]:
        """Remove the operations that ended longer ago than that, and return their ids. Raises JournalError.

        The age of an attempt without a start counts from its last change. An operation whose lock is held stays,
        regardless of its record. A removed id is unknown again: keep operations as long as a caller may ask for them.
        """
        before = (now - older_than).timestamp()
        removed = []
        with self._os_errors(), self._operations() as operations:
            for name in sorted(os.listdir(operations)):  # noqa: PTH208 - of an open folder, not a path
                if name.startswith(_REMOVED):
                    shutil.rmtree(name, dir_fd=operations, ignore_errors=True)
                # Entries that aren't ours to remove (a symlink, another owner's) stay.
                with contextlib.suppress(ValueError, OSError):
                    check_id(name)
                    if self._remove(operations, name, before):
                        removed.append(name)
        return removed

    async def _attempt(self, order: Order, guard: Guard | None) -> str:
        """Run one supervisor and return its last answer: started, held, ended, busy ..., or buried."""
        try:
            supervisor = await Supervisor.start(*await asyncio.to_thread(self._invocation, order))
        except OSError as error:
            raise JournalError.from_os(error, str(self._root)) from error
        try:
            word = await supervisor.word()
            if word == "locked":
                word = await _decide(supervisor, guard)
            if word != "started":
                await supervisor.leave()
        finally:
            supervisor.close()
        if word == "full":
            raise full_disk(str(self._root))
        if word not in _WORDS:
            sentence = word.removeprefix("failed ") or f"The operation's supervisor failed: {supervisor.complaint}."
            raise JournalError("journal_unavailable", sentence)
        return word

    def _invocation(self, order: Order) -> tuple[list[str], dict[str, str]]:
        locks = self._root / "locks"
        directory_lock = locks / lock_name("directory", order.app_directory)
        project_lock = "" if order.project is None else str(locks / lock_name("project", order.project))
        launcher = [word.replace("{id}", order.operation_id) for word in self._launcher]
        supervisor = ["/bin/sh", "-c", supervisor_text(), "moorage-supervisor", str(self._root), order.operation_id]
        about = [json.dumps(dict(order.spec)), str(directory_lock), project_lock, order.directory]
        return [*launcher, *supervisor, *about, *order.argv], dict(order.environment)

    def _remove(self, operations: int, name: str, before: float) -> bool:
        with contextlib.ExitStack() as stack:
            folder = files.open_folder(name, operations)
            stack.callback(os.close, folder)
            if not stack.enter_context(files.held_lock(operations, name, folder)):
                return False
            files.settle(folder)
            last = "exit" if files.exists(folder, "exit") else "."
            if os.stat(last, dir_fd=folder, follow_symlinks=False).st_mtime >= before:
                return False
            # Under the lock, by one rename: a process that opened the folder meanwhile notices that it was removed.
            away = f"{_REMOVED}{name}-{secrets.token_hex(4)}"
            os.rename(name, away, src_dir_fd=operations, dst_dir_fd=operations)
            shutil.rmtree(away, dir_fd=operations, ignore_errors=True)
            return True

    @contextlib.contextmanager
    def _operations(self) -> Iterator[int]:
        root = files.open_folder(str(self._root))
        try:
            operations = files.open_folder("operations", root)
        finally:
            os.close(root)
        try:
            yield operations
        finally:
            os.close(operations)

    @contextlib.contextmanager
    def _folder(self, operation_id: str, *, make: bool = False) -> Iterator[tuple[int, int | None]]:
        """Open the folder of all operations, and that of one: None if it doesn't exist and isn't made."""
        check_id(operation_id)
        with self._os_errors(), self._operations() as operations:
            made = False
            with contextlib.suppress(FileExistsError):
                if make:
                    os.mkdir(operation_id, files.FOLDER_MODE, dir_fd=operations)
                    made = True
            try:
                folder = files.open_folder(operation_id, operations)
            except FileNotFoundError:
                yield operations, None
                return
            try:
                if made:
                    os.fchmod(folder, files.FOLDER_MODE)  # regardless of the umask
                yield operations, folder
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError.from_os(error, str(self._root)) from error

    def _set_rights(self, root: int, name: str) -> None:
        folder = files.open_folder(name, root)
        try:
            about = os.fstat(folder)
            if self._group not in {None, about.st_gid}:
                os.fchown(folder, -1, self._group or 0)
            if about.st_mode & 0o7777 != _SHARED_FOLDER_MODE:
                os.fchmod(folder, _SHARED_FOLDER_MODE)
        finally:
            os.close(folder)


async def _decide(supervisor: Supervisor, guard: Guard | None) -> str:
    try:
        refusal = None if guard is None else await guard()
    except Exception:
        with contextlib.suppress(JournalError):
            await supervisor.leave()
        raise
    if refusal is not None:
        check_code(refusal.code)
    await supervisor.say("go" if refusal is None else f"refuse {refusal.code} {files.one_line(str(refusal))}")
    return await supervisor.word()


def _cancel_idle(operations: int, operation_id: str, folder: int, by: str) -> Exit | None:
    """Return the end of an operation that isn't alive: buried now, if it never began. None if it is alive."""
    with files.held_lock(operations, operation_id, folder) as ours:
        if not ours:
            return None
        found = files.settle(folder)
        if found is None:
            files.write_cancelled(folder, by)
            reason = f"Cancelled by {files.one_line(by)} before it started."
            found = files.write_tombstone(folder, "cancelled", reason)
        return found


def _cancelled(found: Exit, *, before_it_began: bool) -> CancelOutcome:
    if found.ending is Ending.BURIED:
        return CancelOutcome.BURIED
    noticed = before_it_began and found.ending is Ending.EXITED
    return CancelOutcome.SIGNALLED if noticed else CancelOutcome.ALREADY_ENDED


def _undecided() -> JournalError:
    return JournalError(
        "journal_unavailable", "Another process on the host is just starting this operation: ask again in a moment."
    )


def _record(operation_id: str, folder: int, found: Exit | None) -> Record:
    code, reason = files.read_reason(folder) if found is not None and found.ending is Ending.BURIED else ("", "")
    return Record(
        operation_id=operation_id,
        state=State.RUNNING if found is None else State(found.ending),
        spec=_read_spec(folder),
        exit_code=found.exit_code if found is not None and found.ending is Ending.EXITED else None,
        length=files.output_length(folder) if found is None else found.length,
        cancelled_by=files.read_cancelled(folder),
        code=code,
        reason=reason,
    )


def _read_spec(folder: int) -> dict[str, object]:
    try:
        spec = parse_json(files.read_file(folder, "spec") or b"{}", SPEC_BYTES)
    except ValueError:
        return {}  # buried before its order was complete
    return spec if isinstance(spec, dict) else {}
