"""Clock jumps with several controllers on one database: deadlines are moved once, or not at all."""

import uuid
from datetime import timedelta

import pytest
import structlog
from factories import add_app
from fakes import EPOCH, FakeClock
from moorage_controller.database import open_database
from moorage_controller.services.operations.leases import Leases
from moorage_controller.services.runs import clock_jumps as timekeeper
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps
from moorage_controller.store.tables.apps import App

HOUR = timedelta(hours=1)
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True, scope="session")


class Controller:
    """The timekeeping parts of a controller, on a machine with its own clock."""

    def __init__(self, settings: Settings, clock: FakeClock) -> None:
        self.clock = clock
        self.database = open_database(settings, clock, clock_decides=True)
        self.leases = Leases(self.database)
        self.timekeeper = ClockJumpGuard(self.database, clock, self.leases)

    async def beat(self) -> None:
        """Run its periodic step."""
        await self.timekeeper.check()
        await self.leases.claim()


async def a_run(database: Database) -> App:
    """Create an app that runs for an hour."""
    moments = {"started_at": EPOCH, "run_began_at": EPOCH, "stop_at": EPOCH + HOUR, "warn_at": EPOCH + HOUR / 2}
    return await add_app(database, status="running", run_id=uuid.uuid4(), run_timeout=60, **moments)


async def found(database: Database, app: App) -> App:
    """Return an app as it is now."""
    async with database.read() as connection:
        row = await apps.get(connection, app.id)
    assert row is not None
    return row


async def test_clock_jump_moves_all_times_of_a_run(database: Database, clock: FakeClock) -> None:
    app = await a_run(database)
    keeper = ClockJumpGuard(database, clock, Leases(database))
    await keeper.check()
    clock.advance(600)
    clock.jump(-3600)
    await keeper.check()
    await keeper.check()
    moved = await found(database, app)
    assert moved.stop_at == EPOCH
    assert (moved.started_at, moved.run_began_at, moved.warn_at) == (EPOCH - HOUR, EPOCH - HOUR, EPOCH - HOUR / 2)
    assert moved.deadline_number == app.deadline_number, "what is left is what was left: agents needn't be told"


async def test_clock_drift_is_followed(database: Database, clock: FakeClock) -> None:
    app = await a_run(database)
    keeper = ClockJumpGuard(database, clock, Leases(database))
    for _ in range(20):
        await keeper.check()
        clock.advance(30)
        clock.jump(0.5)
    assert (await found(database, app)).stop_at == EPOCH + HOUR


@on_postgresql
async def test_shared_clock_jump_is_applied_by_one_of_two_controllers(settings: Settings, database: Database) -> None:
    app, clock = await a_run(database), FakeClock()
    both = [Controller(settings, clock) for _ in range(2)]
    for controller in both:
        await controller.beat()
    for jump, expected in ((3600, HOUR * 2), (-7200, HOUR * 0)):
        clock.jump(jump)
        for controller in both:
            await controller.timekeeper.check()
        for controller in both:
            await controller.beat()
        assert (await found(database, app)).stop_at == EPOCH + expected
        clock.advance(30)
        for controller in both:
            await controller.beat()
    for controller in both:
        await controller.database.close()


@on_postgresql
async def test_suspended_controller_shifts_no_deadline(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a paused virtual machine: its time since boot lacks an hour of real time."""
    monkeypatch.setattr(timekeeper, "log", structlog.get_logger())
    app = await a_run(database)
    went_on, stood_still = Controller(settings, FakeClock()), Controller(settings, FakeClock())
    for controller in (went_on, stood_still):
        await controller.beat()
    went_on.clock.advance(1800)
    await went_on.beat()
    stood_still.clock.jump(1800)
    with structlog.testing.capture_logs() as logged:
        await stood_still.beat()
    assert {"event": "clock_differs", "seconds": 1800.0, "shifted": False, "log_level": "warning"} in logged
    await went_on.beat()
    assert (await found(database, app)).stop_at == EPOCH + HOUR
    for controller in (went_on, stood_still):
        await controller.database.close()
