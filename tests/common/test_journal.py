"""Input of a journalled command, and its record."""

import asyncio
import json
import os
import signal
import stat
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.journal.journal import Journal, JournalError, Launch, Order, Record, State

TELL = """
import json, os
print(json.dumps([
    dict(os.environ), os.getcwd(), os.umask(0), os.readlink("/proc/self/fd/0"), os.getsid(0) == os.getpid(),
    open("/proc/self/status").read(),
]))
"""
Orders = Callable[..., Order]
Until = Callable[..., Awaitable[None]]

HOSTILE = [
    "'; touch injected; '",
    '"; touch injected; "',
    "$(touch injected)",
    "`touch injected`",
    "a;touch injected",
    "new\nline\ntouch injected",
    "\\",
    "*",
    "-n",
    "${HOME}",
    "  blanks  ",
    "tab\tand \x01",
    "ümläut ☃",
    "",
    "!!",
    "%s%n",
    "&& touch injected",
    "|touch injected",
    ">injected",
    "#",
    "~",
]


async def finish(journal: Journal, an_order: Order, until: Until) -> Record:
    assert await journal.launch(an_order) is Launch.STARTED
    await until(lambda: ended(journal, an_order))
    record = journal.read(an_order.operation_id)
    assert record is not None
    return record


def ended(journal: Journal, an_order: Order) -> bool:
    record = journal.read(an_order.operation_id)
    return record is not None and record.state is not State.RUNNING


@pytest.mark.usefixtures("every_shell")
async def test_record_holds_complete_output_and_exit_code(journal: Journal, order: Orders, until: Until) -> None:
    an_order = order("printf one; printf two >&2; exit 7", spec={"kind": "restart", "cdPath": "/a b"})

    record = await finish(journal, an_order, until)

    assert (record.state, record.exit_code, record.length) == (State.EXITED, 7, 6)
    assert (record.cancelled_by, record.code, record.reason) == ("", "", "")
    assert record.spec == {"kind": "restart", "cdPath": "/a b"}
    assert journal.read_output(an_order.operation_id, 0, 100) == b"onetwo"
    assert journal.read_output(an_order.operation_id, 2, 3) == b"etw"
    assert journal.read_output(an_order.operation_id, 6, 100) == b""
    assert await journal.launch(an_order) is Launch.ENDED


@pytest.mark.usefixtures("every_shell")
async def test_launch_attaches_to_running_command(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    an_order = order("printf begun; while [ ! -e on ]; do sleep 0.01; done; printf over")
    assert await journal.launch(an_order) is Launch.STARTED
    await until(lambda: journal.read_output(an_order.operation_id, 0, 100) == b"begun")

    record = journal.read(an_order.operation_id)

    assert record is not None
    assert (record.state, record.exit_code, record.length) == (State.RUNNING, None, 5)
    assert await journal.launch(an_order) is Launch.ATTACHED
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))
    assert journal.read_output(an_order.operation_id, 0, 100) == b"begunover"


@pytest.mark.usefixtures("every_shell")
async def test_command_gets_only_its_own_environment(journal: Journal, order: Orders, until: Until, work: Path) -> None:
    environment = {**order().environment, "SECRET": "a 'b'\n$(c)", "root": "kept", "PWD": "/elsewhere", "CDPATH": "/"}
    an_order = order(argv=["/usr/bin/env", "python3", "-c", TELL], environment=environment)

    await finish(journal, an_order, until)

    found, directory, umask, standard_input, leader, status = json.loads(
        journal.read_output(an_order.operation_id, 0, 100_000)
    )
    mine = os.umask(0o022)
    os.umask(mine)
    for added in ("_", "SHLVL", "LC_CTYPE"):  # bash adds the first two, Python the last
        found.pop(added, None)
    assert found == {**environment, "PWD": str(work)}
    assert (directory, umask, standard_input, leader) == (str(work), mine, "/dev/null", True)
    ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # A signal that this process ignores (INT, as a background job) can't be caught by a child.
        assert bool(ignored & 1 << number - 1) == (signal.getsignal(number) is signal.SIG_IGN)


@pytest.mark.usefixtures("every_shell")
async def test_hostile_arguments_are_passed_unchanged(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    names = [name for name in HOSTILE if name and "/" not in name]
    spec = {f"key {index} {text}": text for index, text in enumerate(HOSTILE)}
    an_order = order(argv=["/usr/bin/printf", "%s\\0", *HOSTILE], spec=spec, project="$(touch injected)'\n")

    record = await finish(journal, an_order, until)

    assert journal.read_output(an_order.operation_id, 0, 10_000).decode().split("\0")[:-1] == HOSTILE
    assert record.spec == spec
    for name in names:
        (work / name).mkdir()
        inside = order("pwd -P; printf .", directory=str(work / name), app_directory=str(work / name))
        await finish(journal, inside, until)
        assert journal.read_output(inside.operation_id, 0, 10_000).decode() == f"{work / name}\n."
    assert "injected" not in everything_under(work.parent)


@pytest.mark.usefixtures("every_shell")
async def test_command_that_cannot_run_ends_with_a_sentence(journal: Journal, order: Orders, until: Until) -> None:
    nowhere = order(directory="/no/such 'place'")
    assert (await finish(journal, nowhere, until)).exit_code == 125
    assert b"The directory /no/such 'place' can not be entered" in journal.read_output(nowhere.operation_id, 0, 1000)
    nothing = order(argv=["/no/such/program"])
    assert (await finish(journal, nothing, until)).exit_code == 127
    assert b"/no/such/program" in journal.read_output(nothing.operation_id, 0, 1000)
    assert (await finish(journal, order(argv=["/etc/passwd"]), until)).exit_code == 126


async def test_exit_code_reflects_terminating_signal(journal: Journal, order: Orders, until: Until) -> None:
    assert (await finish(journal, order("kill -s SEGV $$"), until)).exit_code == 128 + signal.SIGSEGV


async def test_twenty_concurrent_launches_start_command_once(
    journal: Journal, order: Orders, until: Until, work: Path
) -> None:
    an_order = order("echo ran >>runs; while [ ! -e on ]; do sleep 0.01; done")

    outcomes = await asyncio.gather(*(journal.launch(an_order) for _ in range(20)))

    assert sorted(outcomes) == [Launch.ATTACHED] * 19 + [Launch.STARTED]
    (work / "on").touch()
    await until(lambda: ended(journal, an_order))
    assert (work / "runs").read_text() == "ran\n"


async def test_launcher_prefix_runs_with_operation_id(root: Path, order: Orders, until: Until) -> None:
    journal = Journal(root, launcher=["/usr/bin/env", "UNIT=moorage-op-{id}"])
    journal.prepare()
    an_order = order('printf %s "$UNIT"')

    await finish(journal, an_order, until)

    assert journal.read_output(an_order.operation_id, 0, 100).decode() == f"moorage-op-{an_order.operation_id}"


async def test_failed_launcher_is_reported(root: Path, order: Orders) -> None:
    for launcher, reason in ((["/no/such/launcher"], "No such file"), (["/bin/sh", "-c", "echo broken >&2"], "broken")):
        journal = Journal(root, launcher=launcher)
        journal.prepare()
        an_order = order()
        with pytest.raises(JournalError, match=reason) as caught:
            await journal.launch(an_order)
        assert caught.value.code == "journal_unavailable"
        assert journal.read(an_order.operation_id) is None


async def test_missing_tool_is_named(journal: Journal, order: Orders, work: Path) -> None:
    with pytest.raises(JournalError, match="has no command flock"):
        await journal.launch(order(environment={"PATH": str(work)}))


async def test_environment_is_absent_from_process_list(journal: Journal, order: Orders, work: Path) -> None:
    an_order = order(
        "while [ ! -e on ]; do sleep 0.01; done", environment={**order().environment, "KEY": "s3cr3t-v4lue"}
    )
    await journal.launch(an_order)

    shown = process_list()

    assert any(an_order.operation_id.encode() in line for line in shown)
    assert not any(b"s3cr3t-v4lue" in line for line in shown)
    (work / "on").touch()


def everything_under(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def process_list() -> list[bytes]:
    return [read_bytes(process / "cmdline") for process in Path("/proc").glob("[0-9]*")]


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_unknown_operation_returns_none(journal: Journal, root: Path) -> None:
    unknown = str(uuid.uuid4())
    assert journal.read(unknown) is None
    assert journal.read_output(unknown, 0, 10) == b""
    assert journal.kill(unknown) is False
    assert not list((root / "operations").iterdir())


def test_missing_journal_differs_from_unknown_operation(tmp_path: Path) -> None:
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path / "nowhere").read(str(uuid.uuid4()))
    assert caught.value.code == "journal_unavailable"


PATH_TRICKS = ["../x", "", ".", "..", "/etc", "x", str(uuid.UUID(int=0)).upper() + "/", f"{{{uuid.UUID(int=1)}}}"]


@given(st.text() | st.sampled_from(PATH_TRICKS) | st.uuids().map(lambda u: u.hex) | st.uuids().map(lambda u: f"{u}\n"))
def test_only_a_canonical_uuid_is_an_id(text: str) -> None:
    journal = Journal(Path("/nonexistent"))
    calls: list[Callable[[], object]] = [
        lambda: journal.read(text),
        lambda: journal.read_output(text, 0, 1),
        lambda: journal.cancel(text, "ann"),
        lambda: journal.kill(text),
        lambda: journal.tombstone(text, "gone", "Gone."),
        lambda: Order(text, {}, ["true"], {}, "/", "/", None),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="canonical"):
            call()


@pytest.mark.parametrize(
    "change",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": ["-c"]},
        {"argv": ["a\0b"]},
        {"environment": {"A-B": "1"}},
        {"environment": {"A": "\0"}},
        {"environment": {"mj_root": "1"}},
        {"directory": "relative"},
        {"app_directory": "../x"},
        {"spec": {"long": "x" * 70_000}},
    ],
)
def test_invalid_order_is_refused(order: Orders, change: Mapping[str, object]) -> None:
    good = order()
    with pytest.raises(ValueError, match=r"\w"):
        replace(good, **change)  # type: ignore[arg-type]  # any field, by name


async def test_journal_modes_allow_group_only(root: Path, order: Orders, until: Until) -> None:
    journal = Journal(root, group=os.getgid())
    journal.prepare()
    journal.prepare()
    an_order = order()
    await finish(journal, an_order, until)
    journal.tombstone(str(uuid.uuid4()), "gone", "Gone.")

    for name in ("operations", "locks"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o3770
    for folder in (root / "operations").iterdir():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2770
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o660, file.name
