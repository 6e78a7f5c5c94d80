"""The journal's shell implementation: it reads and writes the same files and gives the same results."""

import asyncio
import os
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
from moorage_common.journal import shell as journal_shell
from moorage_common.journal.journal import CancelOutcome, Journal, Launch, Order, Record, Refused, State
from moorage_common.journal.shell import Look

Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]

HOLD = "echo begun; while [ ! -e on ]; do sleep 0.01; done; echo over"
STUBBORN = "trap '' TERM; echo deaf; while [ ! -e on ]; do sleep 0.01; done"
HOSTILE = 'anna\'; touch /tmp/owned; $(touch owned) `touch owned` "x" \\ é'


class Started(Protocol):
    """A shell in place of /bin/sh."""

    launcher: tuple[str, ...]
    path: str


class ByShell:
    """The journal's calls, each in a new shell."""

    def __init__(self, root: Path, shell: Started) -> None:
        self.root = str(root)
        self._shell = shell

    def look(self, *orders: Order, after: int = 0, limit: int = 1000) -> list[Look]:
        """Return the state and new output of each operation."""
        calls = [journal_shell.look_call(self.root, o.operation_id, after, limit) for o in orders]
        return journal_shell.parse_outputs(self._run("\n".join(calls)), len(calls), 1 << 20)

    def show(self, operation_id: str) -> Record | None:
        """Return the record of an operation."""
        return journal_shell.read_record(operation_id, self._run(journal_shell.show_call(self.root, operation_id)))

    def cancel(self, operation_id: str, by: str = "anna") -> str:
        """Cancel one; returns the outcome."""
        return self._run(journal_shell.cancel_call(self.root, operation_id, by)).decode().strip()

    def clean(self, days: int) -> list[str]:
        """Remove older operations; returns their ids."""
        return self._run(journal_shell.clean_call(self.root, days)).decode().split()

    def _run(self, call: str) -> bytes:
        argv = [*self._shell.launcher, "/bin/sh"]
        text = f"{journal_shell.journal_text()}\n{call}\n".encode()
        environment = {"PATH": self._shell.path, "LC_ALL": "C"}
        done = subprocess.run(argv, input=text, capture_output=True, env=environment, timeout=60, check=True)
        assert done.stderr == b""
        return done.stdout


@pytest.fixture
def by_shell(root: Path, shell: Started) -> ByShell:
    return ByShell(root, shell)


def ended(journal: Journal, order: Order) -> bool:
    record = journal.read(order.operation_id)
    return record is not None and record.state is not State.RUNNING


@pytest.mark.usefixtures("every_shell")
async def test_output_is_read_by_offset_while_it_runs_and_afterwards(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until, work: Path
) -> None:
    held, other = order(HOLD), order("printf 'a\\0b\\nend-of-it'", app_directory="/elsewhere")
    for each in (held, other):
        assert await journal.launch(each) is Launch.STARTED
    await until(lambda: ended(journal, other) and by_shell.look(held)[0].data)
    assert by_shell.look(held, other, order()) == [
        Look("running", b"begun\n"),
        Look("ended", b"a\0b\nend-of-it"),
        Look("unknown", b""),
    ]
    assert by_shell.look(held, other, after=3, limit=2) == [Look("running", b"un"), Look("ended", b"\ne")]
    assert by_shell.look(held, after=6) == [Look("running", b"")]
    (work / "on").touch()
    await until(lambda: ended(journal, held))
    assert by_shell.look(held, after=6) == [Look("ended", b"over\n")]


@pytest.mark.usefixtures("every_shell")
async def test_record_equals_that_of_python_journal(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until, work: Path
) -> None:
    held, failed, refused = order(HOLD), order("echo no; exit 7", app_directory="/a"), order(app_directory="/b")

    async def guard() -> Refused:
        return Refused("project_taken", "It is taken.")

    await journal.launch(held)
    await journal.launch(failed)
    with pytest.raises(Refused):
        await journal.launch(refused, guard)
    await until(lambda: ended(journal, failed))
    await until(lambda: by_shell.look(held)[0].data)
    for each in (held, failed, refused):
        assert by_shell.show(each.operation_id) == journal.read(each.operation_id)
    assert by_shell.show(str(uuid.uuid4())) is None
    (work / "on").touch()


@pytest.mark.usefixtures("every_shell")
async def test_lost_run_is_detected_and_recorded(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until, root: Path
) -> None:
    lost = order("sleep 600")
    await journal.launch(lost)
    folder = root / "operations" / lost.operation_id
    await until(lambda: (folder / "pid").read_text().endswith(" end\n"))
    supervisor, command = int((folder / "start").read_text().split()[2]), (folder / "pid").read_text().split()[1]
    os.kill(supervisor, 9)
    assert by_shell.look(lost)[0].word == "running"
    os.killpg(int(command), 9)
    await until(lambda: by_shell.look(lost)[0].word == "ended")
    record = by_shell.show(lost.operation_id)
    assert record is not None
    assert record.state is State.LOST
    assert record == journal.read(lost.operation_id)
    assert (folder / "exit").read_text().startswith("1 lost ")


@pytest.mark.usefixtures("every_shell")
async def test_cancel_ends_process_group_and_records_requester(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until, work: Path
) -> None:
    held = order(HOLD)
    await journal.launch(held)
    await until(lambda: by_shell.look(held)[0].data)
    assert by_shell.cancel(held.operation_id, HOSTILE) == CancelOutcome.SIGNALLED
    await until(lambda: ended(journal, held))
    assert by_shell.cancel(held.operation_id, "bert") == CancelOutcome.ALREADY_ENDED
    record = journal.read(held.operation_id)
    assert record is not None
    assert (record.cancelled_by, record.exit_code) == (HOSTILE, 143)
    assert by_shell.show(held.operation_id) == record
    assert not [p for p in (work / "owned", Path("owned"), Path("/tmp/owned")) if p.exists()]  # noqa: S108 - HOSTILE's


@pytest.mark.usefixtures("every_shell")
async def test_command_ignoring_cancel_is_killed_after_ten_seconds(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until
) -> None:
    deaf = order(STUBBORN)
    await journal.launch(deaf)
    await until(lambda: by_shell.look(deaf)[0].data)
    began = time.monotonic()
    assert by_shell.cancel(deaf.operation_id) == CancelOutcome.SIGNALLED
    assert by_shell.look(deaf)[0].word == "running"
    await until(lambda: ended(journal, deaf), seconds=20)
    assert 8 < time.monotonic() - began < 15
    record = journal.read(deaf.operation_id)
    assert record is not None
    assert record.exit_code == 137


@pytest.mark.usefixtures("every_shell")
async def test_missing_operation_gets_tombstone_and_never_runs(
    journal: Journal, by_shell: ByShell, order: Orders, work: Path
) -> None:
    late = order("touch ran")
    assert by_shell.cancel(late.operation_id) == CancelOutcome.BURIED
    assert by_shell.cancel(late.operation_id, "bert") == CancelOutcome.BURIED
    assert await journal.launch(late) is Launch.ENDED
    record = by_shell.show(late.operation_id)
    assert record is not None
    assert (record.state, record.code, record.cancelled_by) == (State.BURIED, "cancelled", "anna")
    assert record.reason == "Cancelled by anna before it started."
    assert record == journal.read(late.operation_id)
    assert not (work / "ran").exists()


@pytest.mark.usefixtures("every_shell")
async def test_cancellation_during_the_guard_is_kept(
    journal: Journal, by_shell: ByShell, order: Orders, work: Path
) -> None:
    guarded = order("touch ran")

    async def guard() -> None:
        assert await asyncio.to_thread(by_shell.cancel, guarded.operation_id) == CancelOutcome.SIGNALLED

    with pytest.raises(Refused) as caught:
        await journal.launch(guarded, guard)
    assert caught.value.code == "cancelled"
    assert not (work / "ran").exists()


@pytest.mark.usefixtures("every_shell")
async def test_clean_removes_old_operations_and_keeps_running_ones(
    journal: Journal, by_shell: ByShell, order: Orders, until: Until, root: Path, work: Path
) -> None:
    old, young, held = order(app_directory="/a"), order(app_directory="/b"), order(HOLD)
    for each in (old, young, held):
        await journal.launch(each)
    await until(lambda: ended(journal, old) and ended(journal, young))
    week = time.time() - 7 * 24 * 3600 - 60
    folders = {each.operation_id: root / "operations" / each.operation_id for each in (old, young, held)}
    os.utime(folders[old.operation_id] / "exit", (week, week))
    os.utime(folders[held.operation_id], (week, week))
    never = root / "operations" / str(uuid.uuid4())
    never.mkdir()
    (never / "lock").touch()
    os.utime(never, (week, week))
    stranger = root / "operations" / "notes"
    stranger.mkdir()
    os.utime(stranger, (week, week))
    assert sorted(by_shell.clean(7)) == sorted([old.operation_id, never.name])
    left = {young.operation_id, held.operation_id, "notes"}
    assert {path.name for path in (root / "operations").iterdir()} == left
    assert journal.read(old.operation_id) is None
    (work / "on").touch()


@pytest.mark.parametrize("place", ["spec", "lock", "exit"])
def test_symlink_in_journal_is_not_followed(
    journal: Journal, by_shell: ByShell, root: Path, tmp_path: Path, place: str
) -> None:
    del journal
    target = tmp_path / "target"
    target.write_text("secret")
    operation_id = str(uuid.uuid4())
    folder = root / "operations" / operation_id
    folder.mkdir()
    (folder / place).symlink_to(target)
    assert by_shell.show(operation_id) is None or place == "exit"
    by_shell.cancel(operation_id)
    assert target.read_text() == "secret"
