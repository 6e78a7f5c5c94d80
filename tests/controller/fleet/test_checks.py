"""Host checks: shared by concurrent callers, bounded in time, and stored even without a waiting caller."""

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from factories import ENDPOINT, World, server_row
from fakes import FakeClock, FakeHosts, FakeTransport, settle
from moorage_controller.errors import NotFoundError
from moorage_controller.hosts.transport import HostAddress, HostInfo, HostTransport
from moorage_controller.services.fleet.checks import AT_ONCE, CHECK_SECONDS, ROUND_SECONDS, Checks
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.services.runs.transitions import Rules
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import servers as store
from moorage_controller.store.tables.servers import Server
from moorage_lab.waiting import eventually_async

SQLITE_ONLY = "Who asks a host, and for how long, hangs on no database."


class CountedHosts(FakeHosts):
    """Hosts that answer a check after `seconds`, and count the checks."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.asked: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.at_once = self.most_at_once = 0

    def transport(self, server: HostAddress) -> HostTransport:
        """Return the transport to an existing host."""
        assert server.api_endpoint is not None
        assert server.agent_name is not None
        return CountedTransport(self, server.api_endpoint)


class CountedTransport(FakeTransport):
    """The transport to such a host."""

    def __init__(self, hosts: CountedHosts, endpoint: str) -> None:
        super().__init__(hosts.hosts[endpoint], hosts.clock)
        self._hosts = hosts
        self._endpoint = endpoint

    async def info(self) -> HostInfo:
        """Query the host's facts."""
        hosts = self._hosts
        hosts.asked[self._endpoint] += 1
        hosts.at_once += 1
        hosts.most_at_once = max(hosts.most_at_once, hosts.at_once)
        try:
            await hosts.clock.sleep(hosts.seconds.get(self._endpoint, 0))
            return await super().info()
        finally:
            hosts.at_once -= 1


@pytest.fixture
def hosts(clock: FakeClock) -> CountedHosts:
    """Return hosts that count."""
    return CountedHosts(clock)


@pytest.fixture
async def checks(database: Database, hosts: CountedHosts, clock: FakeClock) -> AsyncIterator[Checks]:
    """Return checks of those hosts."""
    signals = Signals()
    checks = Checks(database, hosts, Observations(database, signals, Rules()), signals, clock)
    yield checks
    await checks.close()


async def add(database: Database, hosts: CountedHosts, *names: str) -> list[UUID]:
    """Create servers whose hosts answer immediately; each endpoint is the server's name."""
    rows = [server_row(name=name, api_endpoint=name, agent_name="a") for name in names]
    async with database.write() as connection:
        for row in rows:
            await store.add(connection, row)
    for name in names:
        hosts.add(name)
    return [row.id for row in rows]


async def server(database: Database, server_id: UUID) -> Server:
    async with database.read() as connection:
        found = await store.get(connection, server_id)
    assert found is not None
    return found


async def test_concurrent_callers_share_one_check(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock
) -> None:
    slow, fast = await add(database, hosts, "slow", "fast")
    hosts.seconds["slow"] = 3
    first = asyncio.create_task(checks.check(slow))
    await settle()
    rounds = [asyncio.create_task(checks.check_all()) for _ in range(5)]
    last = asyncio.create_task(checks.check(slow))
    await settle()
    assert (await server(database, fast)).status == "online", "the slow one holds up nobody else"
    first.cancel()
    rounds[0].cancel()
    await clock.run(3)
    assert [task.cancelled() for task in (first, *rounds)] == [True, True, False, False, False, False]
    for task in rounds[1:]:
        assert [(s.name, s.status) for s in task.result()] == [("fast", "online"), ("slow", "online")]
    assert last.result().status == "online"
    assert hosts.asked == {"slow": 1, "fast": 1}
    hosts.seconds.clear()
    await checks.check_all()
    assert hosts.asked == {"slow": 2, "fast": 2}, "a later one is made anew"


async def test_check_result_without_waiter_is_stored(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock
) -> None:
    (server_id,) = await add(database, hosts, "a")
    hosts.seconds["a"] = 3
    caller = asyncio.create_task(checks.check_all())
    await settle()
    caller.cancel()
    await clock.run(3)
    assert (await server(database, server_id)).status == "online"


async def test_check_of_silent_host_times_out(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock
) -> None:
    await add(database, hosts, "dead", "well")
    hosts.seconds["dead"] = 600
    task = asyncio.create_task(checks.check_all())
    await clock.run(CHECK_SECONDS - 0.1)
    assert not task.done()
    await clock.run(0.1)
    dead, well = task.result()
    assert (dead.status, well.status) == ("offline", "online")
    assert "no answer within 6 seconds" in (dead.status_detail or "")
    assert hosts.at_once == 0, "and nothing goes on behind it"


async def test_checks_of_dead_hosts_are_limited_and_do_not_block_reply(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock
) -> None:
    names = [f"dead-{number:02}" for number in range(AT_ONCE + 2)]
    await add(database, hosts, *names)
    hosts.seconds = dict.fromkeys(names, 600)
    task = asyncio.create_task(checks.check_all())
    await clock.run(ROUND_SECONDS)
    answered = task.result()
    assert hosts.most_at_once == AT_ONCE
    assert Counter(s.last_checked is not None for s in answered) == {True: AT_ONCE, False: 2}
    await clock.run(CHECK_SECONDS)
    assert sum(hosts.asked.values()) == len(names), "the others had their turn after the reply"


async def test_server_changed_during_check_is_checked_at_new_address(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock
) -> None:
    (server_id,) = await add(database, hosts, "old")
    hosts.add("new")
    hosts.seconds["old"] = 600
    task = asyncio.create_task(checks.check(server_id))
    await settle()
    async with database.write() as connection:
        await store.change(connection, server_id, {"api_endpoint": "new"})
    await clock.run(CHECK_SECONDS)
    assert task.result().status == "online"
    assert hosts.asked == {"old": 1, "new": 1}


async def test_removed_or_failing_server_does_not_affect_other_checks(
    database: Database, hosts: CountedHosts, checks: Checks, clock: FakeClock, logs: io.StringIO
) -> None:
    gone, broken, well = await add(database, hosts, "gone", "broken", "well")
    hosts.seconds["gone"] = 1
    del hosts.hosts["broken"]
    task = asyncio.create_task(checks.check_all())
    single = asyncio.create_task(checks.check(gone))
    await settle()
    async with database.write() as connection:
        await store.remove(connection, gone)
    await clock.run(1)
    assert [(s.id, s.status) for s in task.result()] == [(broken, "offline"), (well, "online")]
    assert isinstance(single.exception(), NotFoundError)
    assert logs.getvalue().count("check_failed") == 1


async def test_routes_show_the_check_result(world: World) -> None:
    server_id, host = await world.new_host(name="b")
    lonely = await world.new_server(name="a")
    host.set_running("/srv/x", ["web", "db"])
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    tested = (await world.user.post(f"/api/servers/{server_id}/test")).expect(200)
    server = (await world.user.get(f"/api/servers/{server_id}")).expect(200)
    assert tested == {
        "status": "online",
        "runningAppsCount": 1,
        "runningContainers": 4,
        "lastChecked": server["lastChecked"],
        "message": "The host answers.",
    }
    round_ = (await world.user.post("/api/servers/refresh")).expect(200)
    assert round_["message"] == "1 of 2 servers are online."
    assert round_["servers"] == (await world.user.get("/api/servers")).expect(200)
    assert [s["id"] for s in round_["servers"]] == [lonely, server_id]
    assert "agent" in (await world.user.post(f"/api/servers/{lonely}/test")).expect(200)["message"]
    (await world.user.post("/api/servers/45c48cce-2e2d-4fbd-9aa1-0c0d0e0f1011/test")).expect(404, "server_not_found")
    (await world.nobody.post("/api/servers/refresh")).expect(401)


async def test_status_of_new_server_changes_after_first_check(world: World) -> None:
    body = {"name": "s", "address": "10.0.0.1", "apiEndpoint": ENDPOINT}
    made = (await world.admin.post("/api/servers", body)).expect(201)
    assert made["status"] == "offline"
    assert made["lastChecked"] is not None
    assert "agent" in made["statusDetail"]
    (server,) = (await world.user.get("/api/servers")).expect(200)
    assert server == made


async def test_server_with_slow_check_has_status_checking(world: World) -> None:
    server_id, host = await world.new_host()
    host.silent = True
    changing = asyncio.create_task(world.admin.put(f"/api/servers/{server_id}", {"name": "renamed"}))

    async def changed() -> bool:
        await world.clock.run(0.5)
        return changing.done()

    await eventually_async(changed)
    server = changing.result().expect(200)
    assert (server["status"], server["statusDetail"]) == ("checking", "It is being checked.")
    await world.clock.run(10)
    shown = (await world.admin.get(f"/api/servers/{server['id']}")).expect(200)
    assert (shown["status"], shown["lastChecked"] is not None) == ("offline", True)


async def test_host_that_missed_one_check_returns_online_by_its_watch(world: World) -> None:
    server_id, host = await world.new_host()
    host.silent = True
    tested = asyncio.create_task(world.user.post(f"/api/servers/{server_id}/test"))

    async def ended() -> bool:
        await world.clock.run(1)
        return tested.done()

    await eventually_async(ended)
    assert tested.result().expect(200)["status"] == "offline"
    host.silent = False
    await world.clock.run(60)
    assert (await world.user.get(f"/api/servers/{server_id}")).expect(200)["status"] == "online"
