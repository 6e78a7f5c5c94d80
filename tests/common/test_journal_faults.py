"""Killed parents, killed supervisors, power cuts, torn records."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from moorage_common.journal.journal import Journal, Launch, Order, Record, Refused, State

Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]
Programs = Callable[..., subprocess.Popen[str]]

WAIT = "while [ ! -e on ]; do sleep 0.01; done"
LAUNCH = """
import asyncio, json, sys, time
from pathlib import Path
from moorage_common.journal.journal import Journal, Order

async def guard():
    print("guarding", flush=True)
    if sys.argv[3] == "in the guard":
        await asyncio.sleep(1000)

async def main():
    journal = Journal(Path(sys.argv[1]))
    print(await journal.launch(Order(**json.loads(sys.argv[2])), guard), flush=True)

asyncio.run(main())
if sys.argv[3] == "after the start":
    time.sleep(1000)
"""


def known(journal: Journal, an_order: Order) -> Record:
    record = journal.read(an_order.operation_id)
    assert record is not None
    return record


def state(journal: Journal, an_order: Order) -> State | None:
    record = journal.read(an_order.operation_id)
    return None if record is None else record.state


def files_of(root: Path, an_order: Order) -> Path:
    return root / "operations" / an_order.operation_id


def supervisor_of(root: Path, an_order: Order) -> int:
    return int((files_of(root, an_order) / "start").read_text().split()[2])


def command_of(root: Path, an_order: Order) -> int:
    return int((files_of(root, an_order) / "pid").read_text().split()[1])


def processes_of(an_order: Order) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"moorage-supervisor" in words and an_order.operation_id.encode() in words:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("end", ["killed", "after its loop"])
async def test_command_outlives_its_starter(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path, started_elsewhere: Programs, end: str
) -> None:
    an_order = order(f"printf before; {WAIT}; printf after; exit 5")
    starter = started_elsewhere(LAUNCH, str(root), json.dumps(asdict(an_order)), "after the start" * (end == "killed"))
    assert starter.stdout is not None
    assert [await asyncio.to_thread(starter.stdout.readline) for _ in range(2)] == ["guarding\n", "started\n"]

    if end == "killed":
        starter.kill()
    await asyncio.to_thread(starter.wait)

    assert state(journal, an_order) is State.RUNNING
    (work / "on").touch()
    await until(lambda: state(journal, an_order) is State.EXITED)
    assert known(journal, an_order).exit_code == 5
    assert journal.read_output(an_order.operation_id, 0, 100) == b"beforeafter"


async def test_starter_killed_before_decision_leaves_nothing(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path, started_elsewhere: Programs
) -> None:
    an_order = order("echo ran >>runs")
    starter = started_elsewhere(LAUNCH, str(root), json.dumps(asdict(an_order)), "in the guard")
    assert starter.stdout is not None
    assert await asyncio.to_thread(starter.stdout.readline) == "guarding\n"
    assert processes_of(an_order)

    starter.kill()

    await until(lambda: not processes_of(an_order))
    assert journal.read(an_order.operation_id) is None
    assert not (work / "runs").exists()
    assert await journal.launch(an_order) is Launch.STARTED
    await until(lambda: state(journal, an_order) is State.EXITED)
    assert (work / "runs").read_text() == "ran\n"


async def test_launch_cancelled_before_decision_leaves_nothing(journal: Journal, order: Orders, until: Until) -> None:
    reached = asyncio.Event()

    async def guard() -> Refused | None:
        reached.set()
        await asyncio.sleep(1000)
        return None

    an_order = order()
    launch = asyncio.create_task(journal.launch(an_order, guard))
    await reached.wait()
    launch.cancel()
    await asyncio.gather(launch, return_exceptions=True)

    await until(lambda: not processes_of(an_order))
    assert journal.read(an_order.operation_id) is None


@pytest.mark.usefixtures("every_shell")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE])
async def test_signal_to_the_supervisor_loses_nothing(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path, number: signal.Signals
) -> None:
    an_order = order(f"{WAIT}; printf whole; exit 3")
    await journal.launch(an_order)

    os.kill(supervisor_of(root, an_order), number)
    (work / "on").touch()

    await until(lambda: state(journal, an_order) is not State.RUNNING)
    record = known(journal, an_order)
    assert (record.state, record.exit_code, record.length) == (State.EXITED, 3, 5)


@pytest.mark.usefixtures("every_shell")
async def test_command_without_supervisor_continues_and_ends_as_lost(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(f"echo ran >>runs; {WAIT}; printf done; rm on")
    await journal.launch(an_order)
    await until((work / "runs").exists)

    os.kill(supervisor_of(root, an_order), signal.SIGKILL)
    await until(lambda: not processes_of(an_order))

    assert state(journal, an_order) is State.RUNNING
    assert await journal.launch(an_order) is Launch.ATTACHED
    (work / "on").touch()
    await until(lambda: state(journal, an_order) is not State.RUNNING)
    record = known(journal, an_order)
    assert (record.state, record.exit_code, record.length) == (State.LOST, None, 4)
    assert await journal.launch(an_order) is Launch.ENDED
    assert (work / "runs").read_text() == "ran\n"


async def test_command_without_its_supervisor_can_be_cancelled(
    journal: Journal, root: Path, order: Orders, until: Until
) -> None:
    an_order = order("sleep 1000")
    await journal.launch(an_order)
    await until(lambda: (files_of(root, an_order) / "pid").read_text().endswith("end\n"))
    os.kill(supervisor_of(root, an_order), signal.SIGKILL)
    await until(lambda: not processes_of(an_order))

    journal.cancel(an_order.operation_id, "ann")

    await until(lambda: state(journal, an_order) is State.LOST)
    assert known(journal, an_order).cancelled_by == "ann"


async def test_operation_with_all_processes_killed_is_lost(
    journal: Journal, root: Path, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("echo ran >>runs; printf some; exec sleep 1000")
    await journal.launch(an_order)
    await until(lambda: journal.read_output(an_order.operation_id, 0, 10) == b"some")

    os.kill(supervisor_of(root, an_order), signal.SIGKILL)
    os.killpg(command_of(root, an_order), signal.SIGKILL)

    await until(lambda: state(journal, an_order) is State.LOST)
    assert await journal.launch(an_order) is Launch.ENDED
    assert (work / "runs").read_text() == "ran\n"


@pytest.mark.usefixtures("every_shell")
@pytest.mark.parametrize("first", ["read", "launch", "tombstone", "cancel", "kill"])
async def test_operation_is_lost_after_power_cut_for_any_reader(
    journal: Journal, root: Path, order: Orders, work: Path, first: str
) -> None:
    an_order = order("echo ran >>runs")
    folder = files_of(root, an_order)
    folder.mkdir()
    (folder / "start").write_text("1 2b1c3f0e-0000-4000-8000-000000000000 4711 99 end\n")
    (folder / "out").write_bytes(b"half")

    if first == "launch":
        assert await journal.launch(an_order) is Launch.ENDED
    elif first == "tombstone":
        assert journal.tombstone(an_order.operation_id, "gone", "Gone.").state is State.LOST
    elif first == "cancel":
        assert journal.cancel(an_order.operation_id, "ann") == "already_ended"
    elif first == "kill":
        assert journal.kill(an_order.operation_id) is False

    record = known(journal, an_order)
    assert (record.state, record.exit_code, record.length) == (State.LOST, None, 4)
    assert (folder / "exit").read_text() == f"1 lost   000 {4:020d} end\n"
    assert await journal.launch(an_order) is Launch.ENDED
    assert not (work / "runs").exists()


WHOLE = f"1 exited 000 {4:020d} end\n"
TORN = [
    *(WHOLE[:length] for length in (0, 1, 12, 33, 37)),
    WHOLE.replace("end", "enx"),
    WHOLE + "x",
    "1 exited 000 4 end\n".ljust(len(WHOLE), "x"),
    WHOLE.replace("1 exited", "2 exited"),
    WHOLE.replace("exited 000", "exited 0x0"),
    WHOLE.replace("4 end", "5 end"),
]


@pytest.mark.usefixtures("every_shell")
@pytest.mark.parametrize("by", ["read", "the supervisor"])
async def test_only_complete_record_of_complete_output_is_accepted(
    journal: Journal, root: Path, order: Orders, by: str
) -> None:
    for text in (*TORN, WHOLE):
        an_order = order()
        folder = files_of(root, an_order)
        folder.mkdir()
        (folder / "start").write_text("1 x 1 1 end\n")
        (folder / "out").write_bytes(b"four")
        (folder / "exit").write_text(text)
        if by == "read":
            assert known(journal, an_order).state is (State.EXITED if text == WHOLE else State.LOST), text
        else:
            argv, environment = journal._invocation(an_order)
            answer = await asyncio.to_thread(subprocess.check_output, argv, env=environment, stdin=subprocess.DEVNULL)
            assert answer == b"ended\n"
        assert (folder / "exit").read_text() == (WHOLE if text == WHOLE else WHOLE.replace("exited", "lost  ")), text


async def test_torn_record_waits_for_the_lock(journal: Journal, root: Path, order: Orders) -> None:
    an_order = order()
    folder = files_of(root, an_order)
    folder.mkdir()
    (folder / "start").touch()
    (folder / "exit").write_text(WHOLE[:20])
    (folder / "lock").touch()
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert known(journal, an_order).state is State.RUNNING
        assert (folder / "exit").read_text() == WHOLE[:20]
    assert known(journal, an_order).state is State.LOST


async def test_damaged_tombstone_still_prevents_start(journal: Journal, root: Path, order: Orders, work: Path) -> None:
    an_order = order("echo ran >>runs")
    journal.tombstone(an_order.operation_id, "gone", "Gone.")
    (files_of(root, an_order) / "exit").write_text("1 bur")
    assert await journal.launch(an_order) is Launch.ENDED
    assert not (work / "runs").exists()


async def test_background_process_of_command_does_not_delay_record(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order(f"(setsid sh -c '{WAIT}; printf late') & printf done")
    await journal.launch(an_order)

    await until(lambda: state(journal, an_order) is State.EXITED)
    assert known(journal, an_order).length == 4
    assert await journal.launch(an_order) is Launch.ENDED
    (work / "on").touch()
    await until(lambda: journal.read_output(an_order.operation_id, 0, 100) == b"donelate")
    assert (known(journal, an_order).state, known(journal, an_order).length) == (State.EXITED, 4)
