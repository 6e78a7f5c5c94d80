"""Removal of old operations only, beside concurrent starts."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from moorage_common.clock import SystemClock
from moorage_common.journal.files import held_lock, open_folder
from moorage_common.journal.journal import Journal, Launch, Order, Record, Refused, State

Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]

WAIT = "while [ ! -e on ]; do sleep 0.01; done"
DAY = timedelta(days=1)


def known(journal: Journal, an_order: Order) -> Record:
    record = journal.read(an_order.operation_id)
    assert record is not None
    return record


def ended(journal: Journal, an_order: Order) -> bool:
    record = journal.read(an_order.operation_id)
    return record is not None and record.state is not State.RUNNING


async def test_clean_removes_operations_ended_long_ago(
    journal: Journal, root: Path, order: Orders, until: Until
) -> None:
    now = SystemClock().now()
    exited, buried, lost = order(), order(), order()
    await journal.launch(exited)
    await until(lambda: ended(journal, exited))
    journal.tombstone(buried.operation_id, "gone", "Gone.")
    (root / "operations" / lost.operation_id).mkdir()
    (root / "operations" / lost.operation_id / "start").touch()
    assert known(journal, lost).state is State.LOST
    ids = sorted(an_order.operation_id for an_order in (exited, buried, lost))

    assert journal.clean(DAY, now) == []
    assert journal.clean(DAY, now + timedelta(hours=23)) == []
    assert journal.clean(DAY, now + timedelta(hours=25)) == ids

    assert [journal.read(operation_id) for operation_id in ids] == [None] * 3
    assert not list((root / "operations").iterdir())


async def test_clean_keeps_running_operations(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    later = SystemClock().now() + 10 * DAY
    running = order(WAIT)
    await journal.launch(running)
    (work / "other").mkdir()
    left = order(f"setsid sh -c '{WAIT}; touch over' & exit 0", app_directory=str(work / "other"))
    await journal.launch(left)
    await until(lambda: ended(journal, left))

    assert journal.clean(DAY, later) == []

    (work / "on").touch()
    await until(lambda: ended(journal, running))
    both = sorted([running.operation_id, left.operation_id])
    await until((work / "over").exists)
    removed: list[str] = []
    while len(removed) < len(both):  # the last process may take a moment to be gone
        removed += await asyncio.to_thread(journal.clean, DAY, later)
    assert sorted(removed) == both


async def test_clean_removes_attempt_that_never_started(journal: Journal, root: Path, order: Orders) -> None:
    an_order = order()

    async def guard() -> Refused | None:
        raise LookupError

    with pytest.raises(LookupError):
        await journal.launch(an_order, guard)

    now = SystemClock().now()
    assert journal.clean(DAY, now) == []
    assert journal.clean(DAY, now + 2 * DAY) == [an_order.operation_id]
    assert not list((root / "operations").iterdir())


async def test_clean_keeps_operation_with_running_guard(journal: Journal, order: Orders, until: Until) -> None:
    an_order = order()

    async def guard() -> Refused | None:
        assert journal.clean(DAY, SystemClock().now() + 2 * DAY) == []
        return None

    assert await journal.launch(an_order, guard) is Launch.STARTED
    await until(lambda: ended(journal, an_order))


async def test_clean_keeps_foreign_entries(journal: Journal, root: Path, order: Orders, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "exit").touch()
    linked = order().operation_id
    (root / "operations" / linked).symlink_to(tmp_path / "outside")
    (root / "operations" / "notes").mkdir()
    (root / "operations" / f".removed-{order().operation_id}").mkdir()

    assert journal.clean(DAY, SystemClock().now() + 2 * DAY) == []

    assert {path.name for path in (root / "operations").iterdir()} == {linked, "notes"}
    assert (tmp_path / "outside" / "exit").exists()


async def test_lock_in_removed_folder_is_void(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path, gated: Callable[[str], Path]
) -> None:
    gate = gated("flock")
    an_order = order("echo ran >>runs")
    await journal.launch(an_order)
    await until(lambda: ended(journal, an_order))
    waiting = order(
        "echo again >>runs",
        operation_id=an_order.operation_id,
        environment={**an_order.environment, "PATH": f"{gate}:{an_order.environment['PATH']}"},
    )
    launch = asyncio.create_task(journal.launch(waiting))
    await until((gate / "arrived").exists)  # it has the old lock file open

    assert journal.clean(DAY, SystemClock().now() + 2 * DAY) == [an_order.operation_id]
    (gate / "open").touch()

    assert await launch is Launch.STARTED
    await until(lambda: ended(journal, an_order))
    assert known(journal, an_order).exit_code == 0
    assert (root / "operations" / an_order.operation_id / "lock").exists()
    assert (work / "runs").read_text() == "ran\nagain\n"


def test_concurrently_removed_folder_cannot_be_locked(journal: Journal, root: Path, order: Orders) -> None:
    operations, name = root / "operations", order().operation_id
    journal.tombstone(name, "gone", "Gone.")
    parent = open_folder(str(operations))
    folder = open_folder(name, parent)
    with held_lock(parent, name, folder) as ours:
        assert ours
    (operations / name).rename(operations / ".removed")
    with held_lock(parent, name, folder) as ours:
        assert not ours
    journal.tombstone(name, "gone", "Gone.")
    with held_lock(parent, name, folder) as ours:
        assert not ours
    os.close(folder)
    os.close(parent)


async def test_concurrent_clean_and_launch_lose_no_run(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("echo ran >>runs")
    removed: list[str] = []
    over = asyncio.Event()

    async def clean() -> None:
        while not over.is_set():
            removed.extend(await asyncio.to_thread(journal.clean, timedelta(milliseconds=20), SystemClock().now()))
            await asyncio.sleep(0.003)

    async def start() -> int:
        outcomes = [await journal.launch(an_order) for _ in range(20)]
        return outcomes.count(Launch.STARTED)

    cleaning = [asyncio.create_task(clean()) for _ in range(2)]
    started = await asyncio.gather(start(), start(), start())
    over.set()
    await asyncio.gather(*cleaning)

    await until(lambda: journal.read(an_order.operation_id) is None or ended(journal, an_order))
    assert sum(started) > 1
    assert (work / "runs").read_text().count("ran") == sum(started)
    assert len(removed) >= sum(started) - 1
