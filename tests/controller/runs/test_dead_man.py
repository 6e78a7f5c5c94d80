"""Deadlines that agents hold, and the adoption of stops that an agent did by itself."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from factories import PATH, World
from fakes import EPOCH, FakeHost, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.errors import DatabaseUnavailableError
from moorage_controller.hosts.transport import Deadline
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import operations as operation_store
from sqlalchemy.ext.asyncio import AsyncConnection

NOW = int(EPOCH.timestamp() * 1000)
MINUTE = 60_000


@pytest.fixture
def app_id(running_app_id: str) -> str:
    """Return an app that runs for five minutes from now on."""
    return running_app_id


def held(host: FakeHost, app_id: str) -> Deadline:
    """Return the deadline of an app at its host's agent."""
    return host.deadlines[uuid.UUID(app_id)][1]


def left(host: FakeHost, app_id: str) -> float | None:
    """Return the remaining seconds of an app at the time its agent was informed."""
    remaining = held(host, app_id).remaining
    return None if remaining is None else remaining.total_seconds()


async def test_agent_gets_deadline_before_start_and_final_one_after(world: World, host: FakeHost) -> None:
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    assert server["keepsDeadlines"] is True
    app_id = await world.new_app(server["id"], autoStopTimeout=5)
    host.hold()
    (await world.user.post(f"/api/apps/{app_id}/start", Prefer="respond-async")).expect(202)
    await settle()
    assert left(host, app_id) == (world.settings.operation_limit_minutes + 5) * 60, "should nobody ever come back"
    await world.clock.run(20)
    host.let_go()
    await settle()
    assert left(host, app_id) == 5 * 60
    assert held(host, app_id).run_id == (await world.row(app_id)).run_id
    (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 3})).expect(200)
    await settle()
    assert left(host, app_id) == 3 * 60
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    await settle()
    assert (held(host, app_id).run_id, left(host, app_id)) == (None, None)


async def test_host_with_full_disk_is_online_and_reports_it(world: World, host: FakeHost, app_id: str) -> None:
    host.disk_problem = "The disk with /var/lib/moorage has less than 40 MiB left: free space there."
    await settle()
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    assert (server["status"], server["statusDetail"]) == ("online", host.disk_problem)
    assert server["keepsDeadlines"] is False
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    host.disk_problem = ""
    await settle()
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    assert (server["status"], server["statusDetail"], server["keepsDeadlines"]) == ("online", None, True)


async def test_missing_deadline_is_sent_to_agent_again(world: World, host: FakeHost, app_id: str) -> None:
    host.deadlines.clear()
    host.break_connections()
    await world.clock.run(60)
    assert left(host, app_id) == pytest.approx(5 * 60, abs=60)
    host.reachable = False
    await settle()
    (await world.user.put(f"/api/apps/{app_id}", {"autoStopTimeout": 2})).expect(200)
    await settle()
    assert left(host, app_id) != 2 * 60 - 60
    host.reachable = True
    await world.clock.run(20)
    row = await world.row(app_id)
    assert held(host, app_id).number == row.deadline_number


async def test_deadline_number_exceeds_that_of_agent(world: World, host: FakeHost, app_id: str) -> None:
    """As after a restore, or after a controller crash between informing the agent of an extension and storing it."""
    known = held(host, app_id)
    host.keep(PATH, Deadline(known.app_id, known.number + 10**9, known.run_id, known.remaining))
    await settle()
    row = await world.row(app_id)
    assert row.deadline_number > known.number + 10**9
    assert held(host, app_id).number == row.deadline_number
    assert (await world.app(app_id))["stopAt"] == NOW + 5 * MINUTE


async def test_removed_app_has_no_deadline_on_agent(world: World, host: FakeHost, app_id: str) -> None:
    (await world.admin.delete(f"/api/apps/{app_id}?force=true")).expect(200)
    await settle()
    assert left(host, app_id) is None


async def test_agent_stop_is_adopted_and_audited_once(world: World, host: FakeHost, app_id: str) -> None:
    row = await world.row(app_id)
    await world.stop()
    world.clock.advance(7 * 60)
    operation_id = await host.act_alone(uuid.UUID(app_id))
    await settle()
    assert host.app(PATH).containers == []
    await world.start()
    await world.clock.run(5)
    app = await world.app(app_id)
    assert (app["status"], app["stopAt"], app["operationId"], app["overdue"]) == ("stopped", None, None, False)
    operation = await world.operation(str(operation_id))
    assert (operation["kind"], operation["actor"], operation["state"]) == ("down", "agent", "succeeded")
    assert host.stops == {}, "it needn't be told any more"
    (entry,) = await world.audit("AUTO_STOP")
    assert entry["data"]["by"] == "agent"
    assert (entry["data"]["reason"], entry["data"]["timeout"]) == ("timeout", 5)
    assert "was stopped: its 5 minutes were over. Its host's agent did it" in entry["details"]
    assert row.run_id is not None
    await world.restart()
    await world.clock.run(60)
    assert len(await world.audit("AUTO_STOP")) == 1
    assert [kind for kind, _ in host.commands].count(OperationKind.DOWN) == 1


async def test_agent_stop_in_progress_is_followed_to_its_end(world: World, host: FakeHost, app_id: str) -> None:
    await world.stop()
    host.hold()
    operation_id = await host.act_alone(uuid.UUID(app_id))
    world.clock.advance(7 * 60)
    await world.start()
    await world.clock.run(5)
    app = await world.app(app_id)
    assert (app["status"], app["operationId"]) == ("stopping", str(operation_id))
    host.let_go()
    await world.clock.run(5)
    assert (await world.app(app_id))["status"] == "stopped"
    assert len(await world.audit("AUTO_STOP")) == 1


async def test_adopted_stop_with_unconfirmed_commit_is_followed(
    world: World, host: FakeHost, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.stop()
    world.clock.advance(7 * 60)
    operation_id = await host.act_alone(uuid.UUID(app_id))
    write, adopted = Database.write, list[uuid.UUID]()

    @asynccontextmanager
    async def cut_once(database: Database) -> AsyncIterator[AsyncConnection]:
        async with write(database) as connection:
            yield connection
            found = await operation_store.get(connection, operation_id)
        if found is not None and not adopted:
            adopted.append(found.id)
            raise DatabaseUnavailableError("cut after the commit")

    monkeypatch.setattr(Database, "write", cut_once)
    await world.start()
    await world.clock.run(30)
    assert adopted == [operation_id]
    app = await world.app(app_id)
    assert (app["status"], app["operationId"]) == ("stopped", None)


async def test_agent_stop_during_start_is_adopted_after_it(world: World, host: FakeHost, app_id: str) -> None:
    host.hold()
    (await world.user.post(f"/api/apps/{app_id}/start", Prefer="respond-async")).expect(202)
    await settle()
    operation_id = await host.act_alone(uuid.UUID(app_id))
    await settle()
    (await world.user.get(f"/api/operations/{operation_id}")).expect(404)
    host.let_go()
    await settle()
    host.break_connections()
    await world.clock.run(20)
    assert (await world.operation(str(operation_id)))["state"] == "succeeded"


async def test_agent_stop_unknown_to_host_ends_and_is_not_run_again(world: World, host: FakeHost, app_id: str) -> None:
    await world.stop()
    operation_id = await host.act_alone(uuid.UUID(app_id))
    await settle()
    del host.journal[operation_id]
    host.set_running(PATH, ["web"])
    await world.start()
    await world.clock.run(60)
    assert (await world.operation(str(operation_id)))["state"] == "failed"
    assert [kind for kind, _ in host.commands].count(OperationKind.DOWN) == 0
    app = await world.app(app_id)
    assert (app["status"], app["operationId"]) == ("running", None)
    assert app["stopAt"] is not None
