"""Rules that the database itself enforces, for every writer and under concurrency."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from factories import USER, add_app, add_operation, audit_row, operation_row, project_row, user_row
from fakes import EPOCH
from moorage_controller.store.database.database import Database, postgresql_url
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.schema import apps as apps_table
from moorage_controller.store.schema import users as users_table
from moorage_controller.store.tables import apps, audit, enrollment, operations, projects, servers, users
from moorage_lab.waiting import eventually_async
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError


async def test_app_has_at_most_one_operation_in_flight(database: Database) -> None:
    app = await add_app(database)
    first = await add_operation(database, app, state="running")
    for state in ("queued", "running"):
        with pytest.raises(IntegrityError):
            await add_operation(database, app, state=state)
    await add_operation(database, app, state="succeeded")
    async with database.write() as connection:
        assert await operations.change_in_flight(connection, first.id, {"state": "failed"})
    await add_operation(database, app, state="queued")


async def test_fifty_concurrent_starts_record_one(database: Database) -> None:
    app = await add_app(database)
    results = await asyncio.gather(*(add_operation(database, app) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(r, IntegrityError) for r in results) == 49
    async with database.read() as connection:
        assert len(await operations.all_in_flight(connection)) == 1


async def test_operation_end_is_never_overwritten(database: Database) -> None:
    operation = await add_operation(database, await add_app(database), state="running")
    async with database.write() as connection:
        assert await operations.change_in_flight(connection, operation.id, {"state": "succeeded", "exit_code": 0})
        assert not await operations.change_in_flight(connection, operation.id, {"state": "failed", "exit_code": 1})
        kept = await operations.get(connection, operation.id)
    assert kept is not None
    assert (kept.state, kept.exit_code) == ("succeeded", 0)


async def test_run_change_requires_matching_run_and_deadline(database: Database) -> None:
    run_id, stop_at = uuid.uuid4(), EPOCH + timedelta(minutes=1)
    app = await add_app(database, run_id=run_id, stop_at=stop_at, status="running")
    stopping = {"status": "stopping"}
    async with database.write() as connection:
        assert not await apps.change_run(connection, app.id, uuid.uuid4(), stop_at, stopping)
        assert not await apps.change_run(connection, app.id, run_id, stop_at + timedelta(microseconds=1), stopping)
        assert not await apps.change_run(connection, app.id, None, stop_at, stopping)
        assert not await apps.change_run(connection, app.id, run_id, None, stopping)
        assert await apps.change_run(connection, app.id, run_id, stop_at, stopping)


async def test_deadline_keeps_its_microseconds_and_its_zone(database: Database) -> None:
    stop_at = EPOCH + timedelta(microseconds=123_457)
    app = await add_app(database, stop_at=stop_at, run_id=uuid.uuid4())
    async with database.read() as connection:
        found = await apps.get(connection, app.id)
    assert found is not None
    assert found.stop_at == stop_at
    assert found.stop_at is not None
    assert found.stop_at.utcoffset() == timedelta(0)


async def test_time_without_a_zone_is_refused(database: Database) -> None:
    app = await add_app(database)
    naive = EPOCH.replace(tzinfo=None)
    with pytest.raises(StatementError, match="without a zone"):
        async with database.write() as connection:
            await apps.change(connection, app.id, {"stop_at": naive})


async def test_due_runs_are_idle_and_ordered_by_deadline(database: Database) -> None:
    late = await add_app(database, run_id=uuid.uuid4(), stop_at=EPOCH - timedelta(minutes=5))
    now = await add_app(database, run_id=uuid.uuid4(), stop_at=EPOCH)
    busy = await add_app(database, run_id=uuid.uuid4(), stop_at=EPOCH - timedelta(minutes=1))
    await add_operation(database, busy, state="running")
    soon = await add_app(database, run_id=uuid.uuid4(), stop_at=EPOCH + timedelta(seconds=1))
    await add_app(database)
    async with database.read() as connection:
        assert [due.app.id for due in await apps.due(connection, EPOCH)] == [late.id, now.id]
        assert await apps.next_end(connection, EPOCH, timedelta(days=1)) == soon.stop_at
        assert await apps.next_end(connection, EPOCH, timedelta(minutes=5)) == EPOCH, "when the first is overdue"


async def test_project_removal_removes_apps_and_keeps_operations(database: Database) -> None:
    app = await add_app(database)
    operation = await add_operation(database, app, state="succeeded")
    async with database.write() as connection:
        assert await projects.remove(connection, app.project_id)
    async with database.read() as connection:
        assert await apps.get(connection, app.id) is None
        kept = await operations.get(connection, operation.id)
    assert kept is not None
    assert kept.app_id is None


async def test_server_with_apps_cannot_be_removed(database: Database) -> None:
    app = await add_app(database)
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await servers.remove(connection, app.server_id)
    async with database.write() as connection:
        await apps.remove(connection, app.id)
        assert await servers.remove(connection, app.server_id)


async def test_server_removal_removes_join_tokens_and_enrolments(database: Database) -> None:
    app = await add_app(database)
    token = enrollment.StoredToken(uuid.uuid4(), app.server_id, Ciphertext("v1:a:b"), EPOCH, None, EPOCH)
    member = enrollment.Enrollment(uuid.uuid4(), app.server_id, token.id, "a.agents.moorage", "00", "PEM", EPOCH)
    async with database.write() as connection:
        await enrollment.add_token(connection, token)
        await enrollment.add_enrollment(connection, member)
        await apps.remove(connection, app.id)
        await servers.remove(connection, app.server_id)
        assert await enrollment.token(connection, token.id) is None
        assert await enrollment.enrollment_of(connection, token.id) is None


async def test_new_join_token_voids_older_ones_and_is_spent_once(database: Database) -> None:
    app, other = await add_app(database), await add_app(database)
    tokens = [
        enrollment.StoredToken(uuid.uuid4(), server_id, Ciphertext("v1:a:b"), EPOCH, None, EPOCH)
        for server_id in (app.server_id, other.server_id, app.server_id)
    ]
    async with database.write() as connection:
        for token in tokens:
            await enrollment.add_token(connection, token)
        assert [await enrollment.token(connection, t.id) is None for t in tokens] == [True, False, False]
        assert await enrollment.spend_token(connection, tokens[2].id, EPOCH)
        assert not await enrollment.spend_token(connection, tokens[2].id, EPOCH)


async def test_audit_entries_keep_name_of_deleted_user(database: Database) -> None:
    app = await add_app(database)
    user = user_row("somebody")
    entry = audit_row(user.id, EPOCH)
    async with database.write() as connection:
        await users.add(connection, user)
        await audit.add(connection, entry)
    operation = await add_operation(database, app, actor_id=user.id, actor="somebody", state="succeeded")
    async with database.write() as connection:
        await connection.execute(delete(users_table).where(users_table.c.id == user.id))
    async with database.read() as connection:
        (kept,), total = await audit.page(connection, wanted=audit.AuditFilter(), limit=10, offset=0)
        done = await operations.get(connection, operation.id)
    assert total == 1
    assert (kept.user_id, kept.username, kept.message) == (None, "somebody", entry.message)
    assert done is not None
    assert (done.actor_id, done.actor) == (None, "somebody")


async def test_meaningless_values_are_refused(database: Database) -> None:
    app = await add_app(database)
    for values in ({"status": "paused"}, {"auto_stop_timeout": 0}, {"auto_stop_timeout": 43_201}):
        with pytest.raises(IntegrityError):
            async with database.write() as connection:
                await connection.execute(update(apps_table).values(values))
    with pytest.raises(IntegrityError):
        await add_operation(database, app, kind="pull")
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await users.add(connection, user_row("x", "root"))
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await users.add(connection, user_row(USER))


async def test_fifty_concurrent_writers_all_succeed(database: Database) -> None:
    """Each reads before it writes, which fails in a deferred transaction."""

    async def write(number: int) -> None:
        async with database.write() as connection:
            count = (await connection.execute(select(func.count()).select_from(users_table))).scalar_one()
            await connection.execute(
                insert(users_table).values(
                    username=f"u{number}", password_hash=str(count), role="user", created_at=EPOCH, updated_at=EPOCH
                )
            )

    await asyncio.gather(*(write(number) for number in range(50)))
    async with database.read() as connection:
        counts = (await connection.execute(select(users_table.c.password_hash))).scalars().all()
    assert sorted(int(c) for c in counts if c.isdigit()) == list(range(2, 52)), "two writers saw the same state"


async def test_failed_write_is_rolled_back(database: Database) -> None:
    app = await add_app(database)

    async def write_and_fail() -> None:
        async with database.write() as connection:
            await operations.add(connection, operation_row(app))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_and_fail()
    async with database.read() as connection:
        assert await operations.all_in_flight(connection) == []


async def test_read_is_consistent_during_concurrent_writes(database: Database) -> None:
    app = await add_app(database)
    async with database.read() as reading:
        before = await apps.get(reading, app.id)
        async with database.write() as connection:
            await apps.change(connection, app.id, {"name": "Another"})
        after = await apps.get(reading, app.id)
    assert before == after


async def test_only_running_apps_are_counted(database: Database) -> None:
    app = await add_app(database, status="running")
    await add_app(database, status="running")
    async with database.write() as connection:
        await servers.recount(connection, app.server_id)
        server = await servers.get(connection, app.server_id)
        assert server is not None
        assert server.running_apps_count == 1
        await apps.change(connection, app.id, {"status": "stopping"})
        await servers.recount(connection, app.server_id)
        server = await servers.get(connection, app.server_id)
    assert server is not None
    assert server.running_apps_count == 0


async def test_audit_log_is_paged_newest_first_and_filtered_by_user(database: Database) -> None:
    async with database.read() as connection:
        user = await users.by_name(connection, USER)
    assert user is not None
    rows = [audit_row(user.id if n % 2 else None, EPOCH + timedelta(seconds=n)) for n in range(6)]
    async with database.write() as connection:
        for row in rows:
            await audit.add(connection, row)
        page, total = await audit.page(connection, wanted=audit.AuditFilter(), limit=2, offset=1)
        own, own_total = await audit.page(connection, wanted=audit.AuditFilter(user_id=user.id), limit=10, offset=0)
    assert ([row.id for row in page], total) == ([rows[4].id, rows[3].id], 6)
    assert ([row.id for row in own], own_total) == ([rows[5].id, rows[3].id, rows[1].id], 3)


async def test_session_end_is_idempotent_and_expired_session_is_deleted(database: Database) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    async with database.write() as connection:
        user = await users.by_name(connection, USER)
        assert user is not None
        for jti in (first, second):
            await users.add_session(connection, jti, user.id, EPOCH)
        assert not await users.has_session(connection, first, uuid.uuid4()), "another user's"
        for _ in range(2):
            await users.end_session(connection, first)
        assert not await users.has_session(connection, first, user.id)
        await users.forget_expired_sessions(connection, EPOCH)
        assert await users.has_session(connection, second, user.id)
        await users.forget_expired_sessions(connection, EPOCH + timedelta(seconds=1))
        assert not await users.has_session(connection, second, user.id)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@h/n", "postgresql+asyncpg://u:p@h/n"),
        ("postgres://u:p@h/n", "postgresql+asyncpg://u:p@h/n"),
    ],
)
def test_postgresql_url_variants_are_accepted(given: str, used: str) -> None:
    assert postgresql_url(given) == used


async def test_cancelled_writer_releases_write_lock(database: Database) -> None:
    """At each of many moments: the running statement ends first, and its lock is released."""

    async def write() -> None:
        async with database.write() as connection:
            await projects.all_projects(connection)
            await projects.add(connection, project_row())

    kept: list[object] = []
    for turns in range(120):
        writing = asyncio.create_task(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        kept += await asyncio.gather(writing, return_exceptions=True)
        # Less than the ten seconds that SQLite would wait for a lock.
        await asyncio.wait_for(write(), 5)
    assert any(isinstance(result, asyncio.CancelledError) for result in kept)
    async with database.read() as connection:
        assert len(await projects.all_projects(connection)) >= 120


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_cancelled_task_leaves_no_open_transaction(database: Database) -> None:
    async def read() -> None:
        async with database.read() as connection:
            await projects.all_projects(connection)

    async def write() -> None:
        async with database.write() as connection:
            await projects.add(connection, project_row())

    for turns in range(0, 120, 2):
        working = [asyncio.create_task(work()) for work in (read, write, read)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    left = "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"

    async def all_idle() -> bool:
        async with database.read() as connection:
            others = list(await connection.execute(text(f"{left} AND pid <> pg_backend_pid()")))
        assert others == []
        return True

    await eventually_async(all_idle, what="nobody in a transaction")
