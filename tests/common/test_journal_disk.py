"""A disk that is full before a start, fills up during the command, or is full when a loss is recorded."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from moorage_common.journal.journal import CancelOutcome, Journal, JournalError, Launch, Order, Record, State

Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]

WAIT = "while [ ! -e on ]; do sleep 0.01; done"


@pytest.fixture(params=["tmpfs", "ext4"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a journal's folder on its own small disk."""
    disk, mount = tmp_path / "disk", shutil.which("mount") or ""
    disk.mkdir()
    if request.param == "tmpfs":
        subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    else:
        image = tmp_path / "image"
        image.touch()
        os.truncate(image, 4 << 20)
        subprocess.run([shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run([mount, "-o", "loop", image, disk], check=True)
    yield disk
    # Lazily: a supervisor that is about to exit may still have its folder there.
    subprocess.run([shutil.which("umount") or "/bin/umount", "--lazy", disk], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill the disk except for about `leave` bytes; removal of the returned file frees it again."""
    filler, rest = disk / "filler", disk / "rest"
    rest.write_bytes(b"x" * leave)
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    os.fsync(file.fileno())
    rest.unlink()
    os.sync()
    return filler


def state(journal: Journal, an_order: Order) -> State | None:
    record = journal.read(an_order.operation_id)
    return None if record is None else record.state


def known(journal: Journal, an_order: Order) -> Record:
    record = journal.read(an_order.operation_id)
    assert record is not None
    return record


def no_room(disk: Path) -> bool:
    try:
        (disk / "probe").write_bytes(b"x" * 5000)
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        (disk / "probe").unlink(missing_ok=True)
    return False


@pytest.mark.usefixtures("every_shell")
async def test_full_disk_prevents_start_and_is_reported(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("touch ran")
    filler = fill(root)

    with pytest.raises(
        JournalError, match=f"disk of the journal on the host is full: free space under {root}"
    ) as caught:
        await journal.launch(an_order)

    assert caught.value.code == "journal_full"
    assert journal.read(an_order.operation_id) is None
    assert not (work / "ran").exists()
    with pytest.raises(JournalError, match="is full"):
        journal.tombstone(order().operation_id, "gone", "Gone.")
    filler.unlink()
    assert await journal.launch(an_order) is Launch.STARTED
    await until(lambda: state(journal, an_order) is State.EXITED)
    assert (work / "ran").exists()


async def test_launch_with_little_room_starts_completely_or_reports_full(
    journal: Journal, root: Path, order: Orders, until: Until
) -> None:
    outcomes = set()
    for pages in range(16):
        an_order = order("exit 4")
        filler = fill(root, leave=pages * 4096)
        try:
            await journal.launch(an_order)
        except JournalError as error:
            assert error.code == "journal_full"  # noqa: PT017 - either outcome is right, never a third
            assert journal.read(an_order.operation_id) is None
            outcomes.add("full")
        else:
            await until(lambda an_order=an_order: state(journal, an_order) is not State.RUNNING)
            assert (known(journal, an_order).state, known(journal, an_order).exit_code) == (State.EXITED, 4)
            outcomes.add("started")
        filler.unlink()
    assert outcomes == {"full", "started"}


@pytest.mark.usefixtures("every_shell")
async def test_disk_that_fills_up_loses_no_exit_code(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(f"printf before; touch begun; {WAIT}; echo after; exit 9")
    await journal.launch(an_order)
    await until((work / "begun").exists)

    fill(root)
    (work / "on").touch()

    await until(lambda: state(journal, an_order) is not State.RUNNING)
    assert no_room(root)
    record = known(journal, an_order)
    assert (record.state, record.exit_code) == (State.EXITED, 9)
    output = journal.read_output(an_order.operation_id, 0, 100)
    assert len(output) == record.length
    assert b"beforeafter\n".startswith(output)


async def test_command_that_fills_the_disk_itself_can_be_cancelled(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("dd if=/dev/zero bs=65536; touch filled; sleep 1000")
    await journal.launch(an_order)
    await until((work / "filled").exists)
    fill(root)
    assert no_room(root)

    assert journal.cancel(an_order.operation_id, "Ann Other") is CancelOutcome.SIGNALLED

    await until(lambda: state(journal, an_order) is State.EXITED)
    assert (known(journal, an_order).exit_code, known(journal, an_order).cancelled_by) == (143, "Ann Other")


async def test_lost_run_on_full_disk_is_known_and_recorded_later(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("touch begun; exec sleep 1000")
    await journal.launch(an_order)
    await until((work / "begun").exists)
    fill(root)
    folder = root / "operations" / an_order.operation_id
    for name, word in (("start", 2), ("pid", 1)):
        os.kill(int((folder / name).read_text().split()[word]), signal.SIGKILL)

    await until(lambda: state(journal, an_order) is State.LOST)

    assert (folder / "exit").read_text().startswith("1 lost ")
    assert await journal.launch(an_order) is Launch.ENDED
