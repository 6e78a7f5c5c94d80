"""Lateness of auto-stops with 10,000 running apps, 500 of which end in the same second, and delay of other requests.

The hosts are in memory, everything else is real: the database, its syncs, the clock. Prints numbers, asserts that all
are stopped, and none before its time.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from benchmark_figures import tell
from factories import World, add_users, app_row, make_settings, project_row, server_row
from fakes import FakeHost
from moorage_common.clock import SystemClock
from moorage_common.docker.states import OperationKind
from moorage_controller.database import open_database
from moorage_controller.hosts.transport import Deadline, Order
from moorage_controller.settings import Settings
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.tables import apps, projects, servers
from moorage_lab.programs.postgres import PrivatePostgres
from moorage_lab.waiting import eventually_async

_HOSTS, _APPS, _DUE = 125, 80, 4
_LEAD = timedelta(seconds=90)


async def fill(world: World) -> datetime:
    """Create hosts on which all apps run; return the common deadline of some of them."""
    now = datetime.now(UTC)
    end = (now + _LEAD).replace(microsecond=0)
    project = project_row()
    database = open_database(world.settings, SystemClock())
    await migrate(database)
    await add_users(database)
    async with database.write() as connection:
        await projects.add(connection, project)
    for h in range(_HOSTS):
        endpoint = f"10.2.{h // 250}.{h % 250}:7443"
        host = world.hosts.add(endpoint)
        server = server_row(name=endpoint, api_endpoint=endpoint, agent_name=endpoint, status="online")
        async with database.write() as connection:
            await servers.add(connection, server)
            for a in range(_APPS):
                path = f"/srv/{h}/{a}"
                run = {"run_id": uuid4(), "run_timeout": 60, "started_at": now, "run_began_at": now}
                stop_at = end if a < _DUE else end + timedelta(minutes=30, seconds=h * _APPS + a)
                known = {"project_name": str(a), "project_directory": path, "health": "healthy", "deadline_number": 1}
                values = run | known | {"stop_at": stop_at, "status": "running"}
                app = app_row(project.id, server.id, cd_path=path, **values)
                await apps.add(connection, app)
                host.app(path).services = ("web",)
                host.set_running(path, ["web"])
                host.keep(path, Deadline(app.id, 1, app.run_id, stop_at - now))
    await database.close()
    return end


def arrivals(world: World) -> dict[str, float]:
    """Return the arrival time of each stop by directory, in epoch seconds."""
    found: dict[str, float] = {}

    def noting(host: FakeHost) -> Callable[[Order], Awaitable[None]]:
        async def note(order: Order) -> None:
            if order.kind is OperationKind.DOWN:
                found[order.app.cd_path] = time.time()

        assert host
        return note

    for host in world.hosts.hosts.values():
        host.on_start = noting(host)
    return found


async def asked(world: World, app_id: UUID) -> float:
    """Return the wait of another writer, in milliseconds."""
    began = time.perf_counter()
    (await world.admin.put(f"/api/apps/{app_id}", {"domain": str(began)})).expect(200)
    return (time.perf_counter() - began) * 1000


async def measure(settings: Settings) -> list[float]:
    """Wait for the deadline, and print the figures; return the lateness of each stop in milliseconds."""
    world = World(settings)
    end = await fill(world)
    came = arrivals(world)
    try:
        await world.start(SystemClock())
        (app, *_) = (await world.admin.get("/api/apps?limit=1")).expect(200)
        await eventually_async(partial(_all_online, world), timeout=80, what="all hosts watched")
        await asyncio.sleep(max(end.timestamp() - 15 - time.time(), 0))
        quiet = [await asked(world, app["id"]) for _ in range(30)]
        await asyncio.sleep(max(end.timestamp() - 0.2 - time.time(), 0))
        busy: list[float] = []
        while len(came) < _HOSTS * _DUE and time.time() < end.timestamp() + 60:
            busy.append(await asked(world, app["id"]))
            await asyncio.sleep(0.05)
        late = sorted((moment - end.timestamp()) * 1000 for moment in came.values())
        _print(late, quiet, busy)
        return late
    finally:
        await world.close()


async def _all_online(world: World) -> bool:
    found = (await world.admin.get("/api/servers")).expect(200)
    return all(server["lastChecked"] is not None for server in found)


def _print(late: list[float], quiet: list[float], busy: list[float]) -> None:
    cuts = statistics.quantiles(late, n=100)
    tell(
        f"{len(late)} of {_HOSTS * _APPS} end at once; late by: first {late[0]:.0f} ms, median {cuts[49]:.0f} ms, "
        f"90th percentile {cuts[89]:.0f} ms, 99th {cuts[98]:.0f} ms, last {late[-1]:.0f} ms"
    )
    tell(
        f"somebody else's write: median {statistics.median(quiet):.0f} ms before, {statistics.median(busy):.0f} ms "
        f"meanwhile (ratio {statistics.median(busy) / statistics.median(quiet):.1f}), longest {max(busy):.0f} ms"
    )


@pytest.mark.timeout(300)
async def test_auto_stop_lateness_on_sqlite(tmp_path: Path) -> None:
    late = await measure(make_settings(tmp_path))
    assert len(late) == _HOSTS * _DUE
    assert late[0] >= 0


@pytest.mark.timeout(300)
async def test_auto_stop_lateness_on_postgresql(tmp_path: Path, postgres: PrivatePostgres) -> None:
    late = await measure(make_settings(tmp_path, database_url=postgres.create_database("lateness")))
    assert len(late) == _HOSTS * _DUE
    assert late[0] >= 0
