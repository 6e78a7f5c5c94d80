"""The agent's deadlines: highest number wins, kept on disk, on a monotonic clock, across reboots."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from moorage_agent.apps.identities import WatchedApp
from moorage_agent.deadlines.deadlines import Deadlines, StoredDeadline
from moorage_agent.errors import RefusalError
from moorage_common.docker.states import Project

APP, RUN, NEXT_RUN = (str(uuid4()) for _ in range(3))
SHOP = WatchedApp("/srv/shop", Project("shop", "/srv/shop"))


@dataclass
class Machine:
    """A host's clocks: seconds since boot, and wall time."""

    boot: float = 5000.0
    wall: float = 1_700_000_000.0
    boot_id: str = "first"

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.boot += seconds
        self.wall += seconds

    def reboot(self, *, off: float, wall_jump: float = 0.0) -> None:
        """Power it off for `off` seconds; the wall clock may be set meanwhile."""
        self.wall += off + wall_jump
        self.boot, self.boot_id = 20.0, "second"


@pytest.fixture
def machine() -> Machine:
    """Return a host."""
    return Machine()


def opened(folder: Path, machine: Machine) -> Deadlines:
    """Return the deadlines of an agent that starts now."""
    made = Deadlines(
        folder / "deadlines.json", machine.boot_id, boot_clock=lambda: machine.boot, wall_clock=lambda: machine.wall
    )
    made.load()
    return made


def only(deadlines: Deadlines) -> StoredDeadline:
    """Return the only deadline."""
    (held,) = deadlines.held
    return held


async def test_deadline_survives_agent_restart_and_keeps_counting(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 7, RUN, 600)
    machine.passes(200)
    held = only(opened(tmp_path, machine))
    assert (held.app_id, held.cd_path, held.project, held.number, held.run_id) == (
        APP,
        SHOP.cd_path,
        SHOP.last_project,
        7,
        RUN,
    )
    assert held.due - machine.boot == 400
    assert (tmp_path / "deadlines.json").stat().st_mode & 0o777 == 0o600


async def test_highest_deadline_number_wins_in_any_order(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 7, RUN, 600)
    await deadlines.set(SHOP, APP, 6, RUN, 1)
    assert (only(deadlines).number, only(deadlines).due - machine.boot) == (7, 600)
    await deadlines.set(SHOP, APP, 7, RUN, 900)
    assert only(deadlines).due - machine.boot == 900, "the same number again: what was told last"
    await deadlines.set(SHOP, APP, 8, "", 0)
    assert deadlines.held == []
    await deadlines.set(SHOP, APP, 7, RUN, 1)
    assert deadlines.held == [], "one that was under way when it was taken back"
    await deadlines.set(SHOP, APP, 9, NEXT_RUN, 60)
    assert only(opened(tmp_path, machine)).run_id == NEXT_RUN


async def test_time_powered_off_counts_towards_deadline(tmp_path: Path, machine: Machine) -> None:
    await opened(tmp_path, machine).set(SHOP, APP, 1, RUN, 600)
    machine.passes(0)
    machine.reboot(off=100)
    assert only(opened(tmp_path, machine)).due - machine.boot == pytest.approx(500)


async def test_clock_set_back_over_reboot_stops_nothing_early(tmp_path: Path, machine: Machine) -> None:
    await opened(tmp_path, machine).set(SHOP, APP, 1, RUN, 600)
    machine.reboot(off=100, wall_jump=-86_400)
    assert only(opened(tmp_path, machine)).due - machine.boot == pytest.approx(600)


async def test_wall_clock_change_does_not_affect_deadline(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 1, RUN, 600)
    machine.wall += 86_400
    assert only(opened(tmp_path, machine)).due - machine.boot == 600
    assert only(deadlines).due - machine.boot == 600


async def test_deadline_that_cannot_be_written_is_refused(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 1, RUN, 600)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moorage_agent.deadlines.deadlines.write_atomic", full)
    with pytest.raises(RefusalError, match="No space left on device") as refused:
        await deadlines.set(SHOP, APP, 2, RUN, 6000)
    assert refused.value.code == "deadlines_not_kept"
    assert only(deadlines).number == 1
    with pytest.raises(RefusalError):
        await deadlines.set(SHOP, APP, 3, RUN, 60)
    assert (only(deadlines).number, only(deadlines).due - machine.boot) == (3, 60), "what comes sooner holds"
    await deadlines.record_stop(only(deadlines), str(uuid4()))
    await deadlines.record_attempt(only(deadlines), stopped=False)
    assert only(deadlines).tries == 1
    with pytest.raises(RefusalError):
        await deadlines.set(SHOP, APP, 4, "", 0)
    assert deadlines.held == [], "and so does an end"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"bootId": "first"}', b"\xff", b'{"held": 1}'])
async def test_unreadable_deadlines_file_is_moved_aside(tmp_path: Path, machine: Machine, content: bytes) -> None:
    (tmp_path / "deadlines.json").write_bytes(content)
    deadlines = opened(tmp_path, machine)
    assert deadlines.held == []
    assert (tmp_path / "deadlines.unreadable").read_bytes() == content
    await deadlines.set(SHOP, APP, 1, RUN, 600)
    assert only(opened(tmp_path, machine)).number == 1


async def test_project_name_of_start_is_known_to_later_stop(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    nameless = WatchedApp("/srv/shop", None)
    await deadlines.set(nameless, APP, 1, RUN, 600)
    below = Project("deploy", "/srv/shop/deploy")
    await deadlines.called("/srv/other", Project("other", "/srv/other"))
    await deadlines.called("/srv/shop", below)
    assert only(opened(tmp_path, machine)).project == below
    await deadlines.set(nameless, APP, 2, RUN, 900)
    assert only(opened(tmp_path, machine)).project == below
    await deadlines.set(SHOP, APP, 3, RUN, 900)
    assert only(deadlines).project == SHOP.last_project


async def test_agent_stops_are_reported_until_followed(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 1, RUN, 600)
    told: list[object] = []
    deadlines.listen(lambda: told.append(deadlines.of(SHOP.cd_path)))
    operation_id = str(uuid4())
    await deadlines.record_stop(only(deadlines), operation_id)
    await deadlines.record_attempt(only(deadlines), stopped=True)
    again = opened(tmp_path, machine).of(SHOP.cd_path)
    assert (again.deadlines, again.stops) == ({}, {APP: operation_id})
    assert told[-1] == again
    await deadlines.forget_stop(str(uuid4()))
    assert deadlines.of(SHOP.cd_path).stops == {APP: operation_id}
    await deadlines.forget_stop(operation_id)
    assert opened(tmp_path, machine).of(SHOP.cd_path).stops == {}
    assert deadlines.of("/srv/other").stops == {}


async def test_attempt_for_older_run_changes_nothing(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 1, RUN, 600)
    old = only(deadlines)
    await deadlines.set(SHOP, APP, 2, NEXT_RUN, 600)
    await deadlines.record_attempt(old, stopped=True)
    assert only(deadlines).run_id == NEXT_RUN


async def test_deadlines_without_run_expire(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    await deadlines.set(SHOP, APP, 1, "", 0)
    machine.passes(25 * 3600)
    await deadlines.set(SHOP, str(uuid4()), 1, RUN, 600)
    kept = json.loads((tmp_path / "deadlines.json").read_bytes())["held"]
    assert [each["run_id"] for each in kept] == [RUN]


async def test_concurrent_deadlines_are_all_kept(tmp_path: Path, machine: Machine) -> None:
    deadlines = opened(tmp_path, machine)
    ids = [str(uuid4()) for _ in range(100)]
    await asyncio.gather(*(deadlines.set(SHOP, app_id, 1, RUN, 600) for app_id in ids))
    assert {held.app_id for held in opened(tmp_path, machine).held} == set(ids)
