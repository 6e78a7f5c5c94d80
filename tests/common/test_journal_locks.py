"""Locks of directory and project, the guard, tombstones, and foreign entries in the journal's folder."""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from moorage_common.journal.journal import Journal, JournalError, Launch, Order, Record, Refused, State, lock_name

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


@pytest.mark.usefixtures("every_shell")
@pytest.mark.parametrize("lock", ["directory", "project"])
async def test_second_operation_on_same_app_is_busy(
    journal: Journal, order: Orders, until: Until, tmp_path: Path, work: Path, lock: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    same = str(work if lock == "directory" else tmp_path / "elsewhere")
    first = order(WAIT, project="web")
    second = order("touch ran", app_directory=same, project=None if lock == "directory" else "web")
    await journal.launch(first)

    with pytest.raises(Refused, match=r"wait for its end and start again\.") as caught:
        await journal.launch(second)

    assert caught.value.code == f"{lock}_busy"
    record = known(journal, second)
    assert (record.state, record.code, record.reason) == (State.BURIED, f"{lock}_busy", str(caught.value))
    assert record.spec == {"kind": "up"}
    (work / "on").touch()
    await until(lambda: ended(journal, first))
    assert known(journal, first).exit_code == 0
    assert await journal.launch(second) is Launch.ENDED
    assert not (work / "ran").exists()
    assert await journal.launch(order(app_directory=same, project="web")) is Launch.STARTED


async def test_next_operation_may_follow_immediately(
    journal: Journal, order: Orders, until: Until, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    # The last step of a supervisor, after its record of the end.
    (slow / "sync").write_text(
        f'#!/bin/sh\n[ "$*" != . ] || until [ -e \'{slow}/open\' ]; do sleep 0.01; done\nexec /bin/sync "$@"\n'
    )
    (slow / "sync").chmod(0o755)
    environment = {**order().environment, "PATH": f"{slow}:{order().environment['PATH']}"}
    first = order(project="web", environment=environment)
    await journal.launch(first)
    await until(lambda: ended(journal, first))

    assert await journal.launch(order(project="web")) is Launch.STARTED
    (slow / "open").touch()


async def test_different_apps_do_not_wait_for_each_other(
    journal: Journal, order: Orders, until: Until, work: Path, tmp_path: Path
) -> None:
    first = order(WAIT, project="web")
    await journal.launch(first)
    assert await journal.launch(order(app_directory=str(tmp_path), project="db")) is Launch.STARTED
    (work / "on").touch()
    await until(lambda: ended(journal, first))


async def test_directory_stays_locked_while_the_command_lives(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    first = order(f"touch begun; {WAIT}")
    await journal.launch(first)
    await until((work / "begun").exists)
    os.kill(int((root / "operations" / first.operation_id / "start").read_text().split()[2]), 9)

    with pytest.raises(Refused):
        await journal.launch(order())

    (work / "on").touch()
    await until(lambda: ended(journal, first))
    assert await journal.launch(order()) is Launch.STARTED


@pytest.mark.usefixtures("every_shell")
async def test_guard_refusal_prevents_start(journal: Journal, order: Orders, work: Path) -> None:
    an_order = order("touch ran")
    calls = []

    async def guard() -> Refused | None:
        calls.append("guard")
        return Refused("project_taken", 'It\'s "taken" by $(touch ran)\n`touch ran`; \\n 100%s.')

    with pytest.raises(Refused) as caught:
        await journal.launch(an_order, guard)

    sentence = 'It\'s "taken" by $(touch ran) `touch ran`; \\n 100%s.'
    assert (caught.value.code, str(caught.value)) == ("project_taken", sentence)
    assert (known(journal, an_order).state, known(journal, an_order).reason) == (State.BURIED, sentence)
    assert await journal.launch(an_order, guard) is Launch.ENDED
    assert calls == ["guard"]
    assert not (work / "ran").exists()


async def test_guard_that_fails_leaves_the_operation_unstarted(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("touch ran")

    async def guard() -> Refused | None:
        raise LookupError("the engine is away")

    with pytest.raises(LookupError):
        await journal.launch(an_order, guard)

    assert journal.read(an_order.operation_id) is None
    assert not (work / "ran").exists()
    assert await journal.launch(an_order) is Launch.STARTED
    await until((work / "ran").exists)


async def test_guard_decides_under_the_locks(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    first, other = order("echo ran >>runs"), order()
    again: list[asyncio.Task[Launch]] = []

    async def guard() -> Refused | None:
        with pytest.raises(Refused):
            await journal.launch(other)
        again.append(asyncio.create_task(journal.launch(first)))
        assert journal.read(first.operation_id) is None
        return None

    assert await journal.launch(first, guard) is Launch.STARTED
    assert await again[0] in {Launch.ATTACHED, Launch.ENDED}
    await until(lambda: ended(journal, first))
    assert (work / "runs").read_text() == "ran\n"


@pytest.mark.usefixtures("every_shell")
async def test_tombstone_prevents_any_later_start(journal: Journal, order: Orders, work: Path) -> None:
    an_order = order("touch ran")

    record = journal.tombstone(an_order.operation_id, "moved", "It went to another\nhost.")

    assert (record.state, record.code, record.reason) == (State.BURIED, "moved", "It went to another host.")
    assert await journal.launch(an_order) is Launch.ENDED
    assert known(journal, an_order) == record
    assert journal.tombstone(an_order.operation_id, "other", "Other.") == record
    assert not (work / "ran").exists()


async def test_running_or_ended_operation_is_not_buried(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(WAIT)
    await journal.launch(an_order)
    assert journal.tombstone(an_order.operation_id, "gone", "Gone.").state is State.RUNNING
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))
    assert journal.tombstone(an_order.operation_id, "gone", "Gone.").state is State.EXITED


async def test_bury_waits_for_concurrent_start(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    an_order = order(WAIT)
    burials: list[asyncio.Task[Record]] = []

    async def guard() -> Refused | None:
        burials.append(
            asyncio.create_task(asyncio.to_thread(journal.tombstone, an_order.operation_id, "gone", "Gone."))
        )
        await asyncio.sleep(0)
        return None

    assert await journal.launch(an_order, guard) is Launch.STARTED
    assert (await burials[0]).state is State.RUNNING
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))


async def test_concurrent_bury_and_start_have_one_winner(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    for delay in range(0, 30, 3):
        an_order = order("echo ran >>runs")

        async def tombstone(operation_id: str = an_order.operation_id, delay: float = delay / 1000) -> Record:
            await asyncio.sleep(delay)
            return await asyncio.to_thread(journal.tombstone, operation_id, "gone", "Gone.")

        launched, record = await asyncio.gather(journal.launch(an_order), tombstone())
        await until(lambda an_order=an_order: ended(journal, an_order))
        final = known(journal, an_order).state
        assert (final is State.BURIED) == (launched is Launch.ENDED) == (record.state is State.BURIED)
        assert (work / "runs").exists() == (final is State.EXITED)
        (work / "runs").unlink(missing_ok=True)


async def test_error_code_is_one_word(journal: Journal, order: Orders) -> None:
    with pytest.raises(ValueError, match="snake_case"):
        journal.tombstone(str(uuid.uuid4()), "two words", "No.")

    async def guard() -> Refused | None:
        return Refused("go\nrefuse", "No.")

    an_order = order()
    with pytest.raises(ValueError, match="snake_case"):
        await journal.launch(an_order, guard)
    assert journal.read(an_order.operation_id) is None


@pytest.mark.usefixtures("every_shell")
async def test_symlinks_are_not_followed(journal: Journal, root: Path, order: Orders, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    linked = order()
    (root / "operations" / linked.operation_id).symlink_to(outside)
    calls: list[Callable[[], object]] = [
        lambda: journal.read(linked.operation_id),
        lambda: journal.cancel(linked.operation_id, "ann"),
        lambda: journal.tombstone(linked.operation_id, "gone", "Gone."),
        lambda: journal.kill(linked.operation_id),
    ]
    for call in calls:
        with pytest.raises(JournalError):
            call()
    with pytest.raises(JournalError, match="symbolic link"):
        await journal.launch(linked)
    assert [path.name for path in outside.iterdir()] == ["file"]

    for name in ("lock", "out", "exit", "exit.new", "pid", "start.new", "cancelled.new"):
        an_order = order()
        folder = root / "operations" / an_order.operation_id
        folder.mkdir()
        (folder / name).symlink_to(outside / "file")
        with pytest.raises(JournalError, match="not a regular file"):
            await journal.launch(an_order)
    (root / "locks" / lock_name("project", "linked")).symlink_to(outside / "file")
    with pytest.raises(JournalError, match="can't be opened"):
        await journal.launch(order(project="linked"))
    assert (outside / "file").read_text() == "untouched"


async def test_named_pipe_instead_of_file_blocks_no_reader(journal: Journal, root: Path, order: Orders) -> None:
    an_order = order()
    folder = root / "operations" / an_order.operation_id
    folder.mkdir()
    for name in ("lock", "start", "exit"):
        os.mkfifo(folder / name)
    with pytest.raises(JournalError):
        await asyncio.to_thread(journal.read, an_order.operation_id)
    with pytest.raises(JournalError, match="not a regular file"):
        await journal.launch(an_order)


@pytest.mark.parametrize("name", ["operations", "locks"])
def test_symlinked_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path / "journal").prepare()
    assert caught.value.code == "journal_unavailable"
    assert (tmp_path / "elsewhere").stat().st_mode & 0o7777 == 0o755


NOBODY = 65534
GROUP = 54321


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder that every user can reach, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def test_journal_is_shared_by_group_members(shared: Path, order: Orders, until: Until) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    work = shared / "work"
    work.mkdir()
    work.chmod(0o777)
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={GROUP}", "--clear-groups"]
    mine = Journal(shared / "journal", group=GROUP)
    mine.prepare()
    theirs = Journal(shared / "journal", group=GROUP, launcher=become)

    for first, second in ((mine, theirs), (theirs, mine)):
        place = {"directory": str(work), "app_directory": str(work), "project": f"web-{id(first)}"}
        one, two = order(WAIT, **place), order("id -u", **place)
        assert await first.launch(one) is Launch.STARTED
        assert await second.launch(one) is Launch.ATTACHED
        with pytest.raises(Refused):
            await second.launch(two)
        (work / "on").touch()
        await until(lambda one=one: ended(mine, one))
        assert known(mine, one).exit_code == 0
        again = order("id -u", **place)
        assert await second.launch(again) is Launch.STARTED
        await until(lambda again=again: ended(mine, again))
        shown = mine.read_output(again.operation_id, 0, 100).decode().strip()
        assert shown == str(NOBODY if second is theirs else os.geteuid())
        (work / "on").unlink()
