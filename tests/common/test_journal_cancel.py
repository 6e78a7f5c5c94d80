"""Cancel and kill: which processes receive the signal."""

import asyncio
import os
import subprocess
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from moorage_common.journal.files import start_time
from moorage_common.journal.journal import CancelOutcome, Journal, Launch, Order, Record, Refused, State

Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]

WAIT = "while [ ! -e on ]; do sleep 0.01; done"


def known(journal: Journal, an_order: Order) -> Record:
    record = journal.read(an_order.operation_id)
    assert record is not None
    return record


def ended(journal: Journal, an_order: Order) -> bool:
    record = journal.read(an_order.operation_id)
    return record is not None and record.state is not State.RUNNING


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.fixture
def bystander() -> Iterator[int]:
    """Return the pid of an unrelated process that leads its own group."""
    with subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True) as process:
        yield process.pid
        process.kill()


@pytest.mark.usefixtures("every_shell")
async def test_cancel_ends_the_whole_group(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    an_order = order("sleep 1000 & echo $! >>pids; sh -c 'sleep 1000 & echo $! >>pids; wait' & wait")
    await journal.launch(an_order)
    await until(lambda: (work / "pids").exists() and len((work / "pids").read_text().split()) == 2)
    pids = [int(pid) for pid in (work / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)

    outcome = await asyncio.to_thread(journal.cancel, an_order.operation_id, "Ann Other")

    assert outcome is CancelOutcome.SIGNALLED
    await until(lambda: ended(journal, an_order) and not any(alive(pid) for pid in pids))
    record = known(journal, an_order)
    assert (record.state, record.exit_code, record.cancelled_by) == (State.EXITED, 143, "Ann Other")


async def test_kill_ends_command_that_ignores_cancel(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    an_order = order(f"trap '' TERM; touch deaf; {WAIT}")
    await journal.launch(an_order)
    await until((work / "deaf").exists)

    assert journal.cancel(an_order.operation_id, "ann") is CancelOutcome.SIGNALLED
    assert known(journal, an_order).state is State.RUNNING
    assert journal.kill(an_order.operation_id) is True

    await until(lambda: ended(journal, an_order))
    assert known(journal, an_order).exit_code == 137
    assert journal.kill(an_order.operation_id) is False


async def test_command_that_completes_despite_cancel_keeps_exit_code(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(f"trap 'touch told' TERM; touch deaf; {WAIT}; exit 0")
    await journal.launch(an_order)
    await until((work / "deaf").exists)

    journal.cancel(an_order.operation_id, "ann")
    await until((work / "told").exists)
    (work / "on").touch()

    await until(lambda: ended(journal, an_order))
    record = known(journal, an_order)
    assert (record.state, record.exit_code, record.cancelled_by) == (State.EXITED, 0, "ann")


async def test_late_cancel_changes_nothing(journal: Journal, order: Orders, until: Until) -> None:
    an_order = order()
    await journal.launch(an_order)
    await until(lambda: ended(journal, an_order))

    assert journal.cancel(an_order.operation_id, "ann") is CancelOutcome.ALREADY_ENDED
    assert (known(journal, an_order).exit_code, known(journal, an_order).cancelled_by) == (0, "")


@pytest.mark.parametrize("change", ["start time", "pid"])
async def test_recycled_pid_is_not_signalled(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path, bystander: int, change: str
) -> None:
    an_order = order(f"touch begun; {WAIT}")
    await journal.launch(an_order)
    await until((work / "begun").exists)
    record = root / "operations" / an_order.operation_id / "pid"
    _, pid, started, _ = record.read_text().split()
    if change == "pid":
        record.write_text(f"1 {bystander:010d} {started} end\n")
    else:
        record.write_text(f"1 {pid} {int(started) - 1:020d} end\n")

    assert journal.kill(an_order.operation_id) is False
    assert journal.cancel(an_order.operation_id, "ann") is CancelOutcome.ALREADY_ENDED

    assert alive(bystander)
    assert alive(int(pid))
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))
    assert known(journal, an_order).exit_code == 0


async def test_operation_without_held_lock_is_not_signalled(
    journal: Journal, root: Path, order: Orders, bystander: int
) -> None:
    an_order = order()
    folder = root / "operations" / an_order.operation_id
    folder.mkdir()
    (folder / "start").touch()
    (folder / "pid").write_text(f"1 {bystander:010d} {start_time(bystander):020d} end\n")

    assert journal.kill(an_order.operation_id) is False
    assert journal.cancel(an_order.operation_id, "ann") is CancelOutcome.ALREADY_ENDED
    assert alive(bystander)
    assert known(journal, an_order).state is State.LOST


@pytest.mark.usefixtures("every_shell")
async def test_unknown_operation_is_buried_and_never_runs(journal: Journal, order: Orders, work: Path) -> None:
    an_order = order("touch ran")

    assert journal.cancel(an_order.operation_id, "ann") is CancelOutcome.BURIED

    assert await journal.launch(an_order) is Launch.ENDED
    record = known(journal, an_order)
    assert (record.state, record.cancelled_by, record.code) == (State.BURIED, "ann", "cancelled")
    assert record.reason == "Cancelled by ann before it started."
    assert journal.cancel(an_order.operation_id, "bob") is CancelOutcome.BURIED
    assert known(journal, an_order).cancelled_by == "ann"
    assert not (work / "ran").exists()


@pytest.mark.usefixtures("every_shell")
async def test_cancellation_during_the_guard_is_kept(journal: Journal, order: Orders, work: Path) -> None:
    an_order = order("touch ran")
    outcomes = []

    async def guard() -> Refused | None:
        outcomes.append(await asyncio.to_thread(journal.cancel, an_order.operation_id, "ann"))
        return None

    with pytest.raises(Refused, match=r"Cancelled by ann before it started\.") as caught:
        await journal.launch(an_order, guard)

    assert outcomes == [CancelOutcome.SIGNALLED]
    assert caught.value.code == "cancelled"
    assert (known(journal, an_order).state, known(journal, an_order).cancelled_by) == (State.BURIED, "ann")
    assert not (work / "ran").exists()


async def test_cancellation_before_the_command_wrote_its_pid_is_kept(
    journal: Journal, order: Orders, until: Until, work: Path, gated: Callable[[str], Path]
) -> None:
    gate = gated("setsid")
    environment = {**order().environment, "PATH": f"{gate}:{order().environment['PATH']}"}
    an_order = order("touch ran", environment=environment)
    assert await journal.launch(an_order) is Launch.STARTED
    await until((gate / "arrived").exists)

    assert await asyncio.to_thread(journal.cancel, an_order.operation_id, "ann") is CancelOutcome.SIGNALLED
    (gate / "open").touch()

    await until(lambda: ended(journal, an_order))
    assert (known(journal, an_order).exit_code, known(journal, an_order).cancelled_by) == (143, "ann")
    assert not (work / "ran").exists()


async def test_cancel_at_any_moment_of_start_wins(journal: Journal, order: Orders, until: Until) -> None:
    for delay in range(0, 40, 2):
        an_order = order("exec sleep 1000")

        async def cancel(operation_id: str = an_order.operation_id, delay: float = delay / 1000) -> CancelOutcome:
            await asyncio.sleep(delay)
            return await asyncio.to_thread(journal.cancel, operation_id, "ann")

        launched, outcome = await asyncio.gather(journal.launch(an_order), cancel(), return_exceptions=True)

        await until(lambda an_order=an_order: ended(journal, an_order))
        record = known(journal, an_order)
        assert record.cancelled_by == "ann"
        assert outcome in {CancelOutcome.SIGNALLED, CancelOutcome.BURIED}
        if record.state is State.BURIED:
            assert launched is Launch.ENDED or isinstance(launched, Refused)
        else:
            assert (launched, record.state, record.exit_code) == (Launch.STARTED, State.EXITED, 143)


async def test_concurrent_cancels_record_one_complete_name(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    names = ["a" * 200, "b" * 200, "c" * 200]
    for _ in range(10):
        an_order = order("trap '' TERM; touch deaf; exec sleep 1000")
        await journal.launch(an_order)
        await until((work / "deaf").exists)
        (work / "deaf").unlink()
        calls = (asyncio.to_thread(journal.cancel, an_order.operation_id, name) for name in names)
        assert await asyncio.gather(*calls) == [CancelOutcome.SIGNALLED] * 3
        assert known(journal, an_order).cancelled_by in names
        assert journal.kill(an_order.operation_id)
        await until(lambda an_order=an_order: ended(journal, an_order))


@pytest.mark.parametrize(
    ("by", "shown"),
    [
        ("a\nb\x1b[31m", "a b [31m"),
        ("ü" * 300, "ü" * 127),
        ("  ", ""),
        ("'; touch injected; '", "'; touch injected; '"),
    ],
)
async def test_canceller_name_is_one_bounded_line(journal: Journal, by: str, shown: str) -> None:
    operation_id = str(uuid.uuid4())
    journal.cancel(operation_id, by)
    record = journal.read(operation_id)
    assert record is not None
    assert record.cancelled_by == shown
    assert "\n" not in record.reason


async def test_supervisor_is_outside_signalled_process_group(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(f"touch begun; {WAIT}")
    await journal.launch(an_order)
    await until((work / "begun").exists)
    folder = root / "operations" / an_order.operation_id
    supervisor = int((folder / "start").read_text().split()[2])
    command = int((folder / "pid").read_text().split()[1])
    assert os.getpgid(command) == command
    assert len({os.getpgid(supervisor), command, os.getpgrp()}) == 3
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))
