"""The contract that services rely on, for every implementation: see the docstrings of HostTransport."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from host_calls import followed, order, run, watching
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import OperationKind, observed_status
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    EndKind,
    HostApp,
    HostInfo,
    HostRefusedError,
    HostTransport,
    Output,
    Snapshot,
    WatchItem,
)
from moorage_lab.waiting import eventually_async
from transport_rigs import SAYS, Rig

PATIENCE = 30.0
ALL = LogsWanted()


def facts(end: End) -> tuple[object, ...]:
    """Return the fields of an end that never change; the observation of the containers is repeated."""
    return (end.kind, end.exit_code, end.length, end.cancelled_by, end.code, end.reason)


async def test_host_info_is_returned(rig: Rig) -> None:
    await rig.transport.connect()
    info = await rig.transport.info()
    assert isinstance(info, HostInfo)
    assert (info.engine_reachable, info.engine_problem) == (True, "")
    assert info.uptime > 0
    assert bool(info.agent_version) == (rig.name == "agent")
    assert info.engine_version
    assert info.compose_version
    assert rig.transport.name == rig.name


async def test_followed_start_ends_with_final_observation(rig: Rig) -> None:
    cd_path = rig.app()
    output, end = await run(rig.transport, order(cd_path))
    assert output
    assert (end.kind, end.exit_code, end.length, end.cancelled_by) == (EndKind.EXITED, 0, len(output), "")
    seen = end.observed
    assert seen is not None
    assert seen.cd_path == cd_path
    assert seen.project is not None
    assert seen.project.directory == cd_path
    (container,) = seen.containers
    assert (container.service, container.alive) == ("web", True)
    assert seen.boot_id
    before = (await rig.transport.info()).running_containers
    assert before >= 1
    _, end = await run(rig.transport, order(cd_path, OperationKind.DOWN))
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)
    assert end.observed is not None
    assert list(end.observed.containers) == []
    assert end.observed.looked_at > seen.looked_at
    assert (await rig.transport.info()).running_containers == before - 1


async def test_second_start_of_the_same_id_attaches(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    await rig.transport.start(sent)
    first, end = await followed(rig.transport, sent.operation_id)
    await rig.transport.start(sent)
    assert (await followed(rig.transport, sent.operation_id))[0] == first
    # A second run would have printed twice.
    assert end.length == len(first)
    assert first.count(b'"Starting"') <= 1


async def test_repeated_follow_yields_same_output_from_any_offset(rig: Rig) -> None:
    sent = order(rig.app())
    whole, end = await run(rig.transport, sent)
    again, same = await followed(rig.transport, sent.operation_id)
    assert (again, facts(same)) == (whole, facts(end))
    for after in (1, len(whole) // 2, len(whole)):
        rest, same = await followed(rig.transport, sent.operation_id, after)
        assert (rest, facts(same)) == (whole[after:], facts(end))


async def test_concurrent_followers_get_the_same_output(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    one, other = await asyncio.gather(*(followed(rig.transport, sent.operation_id) for _ in range(2)))
    assert (one[0], facts(one[1])) == (other[0], facts(other[1]))


async def test_follower_that_stops_changes_nothing(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    async with aclosing(rig.transport.follow(sent.operation_id, 0)) as items:
        first = await anext(items)
    assert isinstance(first, (Output, End))
    _, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)


async def test_unsent_operation_is_unknown(rig: Rig) -> None:
    with pytest.raises(HostRefusedError) as caught:
        await followed(rig.transport, uuid4())
    assert caught.value.code == "operation_unknown"
    assert caught.value.sentence.endswith(".")


async def test_cancelled_start_ends_with_requester(rig: Rig) -> None:
    sent = order(rig.slow_app())
    await rig.transport.start(sent)
    assert await rig.transport.cancel(sent.operation_id, "anna") is CancelOutcome.SIGNALLED
    output, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.cancelled_by, end.length) == (EndKind.EXITED, "anna", len(output))
    assert end.exit_code != 0
    assert await rig.transport.cancel(sent.operation_id, "bert") is CancelOutcome.ALREADY_ENDED
    assert (await followed(rig.transport, sent.operation_id))[1].cancelled_by == "anna"


async def test_cancel_of_missing_operation_prevents_its_start(rig: Rig) -> None:
    cd_path = rig.app()
    sent = order(cd_path)
    assert await rig.transport.cancel(sent.operation_id, "anna") is CancelOutcome.BURIED
    assert await rig.transport.cancel(sent.operation_id, "bert") is CancelOutcome.BURIED
    try:
        await rig.transport.start(sent)
    except HostRefusedError as error:
        assert error.code == "cancelled"  # noqa: PT017 - it may also attach to the tombstone
    output, end = await followed(rig.transport, sent.operation_id)
    assert (output, end.kind, end.code, end.cancelled_by) == (b"", EndKind.BURIED, "cancelled", "anna")
    assert "anna" in end.reason
    snapshot = await first_word(rig.transport, cd_path)
    assert [list(app.containers) for app in snapshot.apps] == [[]]


async def test_stop_cannot_be_cancelled(rig: Rig) -> None:
    sent = order(rig.app(), OperationKind.DOWN)
    await rig.transport.start(sent)
    with pytest.raises(HostRefusedError) as caught:
        await rig.transport.cancel(sent.operation_id, "anna")
    assert caught.value.code == "not_cancellable"
    _, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.exit_code, end.cancelled_by) == (EndKind.EXITED, 0, "")


async def first_word(transport: HostTransport, *paths: str) -> Snapshot:
    """Return a watch's first item."""
    async with asyncio.timeout(PATIENCE), aclosing(watching(transport, *paths)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    return snapshot


async def test_watch_begins_with_snapshot_and_reports_each_exit(rig: Rig) -> None:
    cd_path, idle = rig.app(), rig.app()
    await run(rig.transport, order(cd_path))
    async with asyncio.timeout(PATIENCE), aclosing(watching(rig.transport, cd_path, idle)) as items:
        snapshot = await anext(items)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.host.engine_reachable
        apps = {app.cd_path: app for app in snapshot.apps}
        assert apps.keys() == {cd_path, idle}
        assert observed_status(apps[cd_path].containers) == "running"
        assert observed_status(apps[idle].containers) == "stopped"
        last = apps[cd_path]
        await rig.kill_containers(cd_path)
        while observed_status(last.containers) == "running":
            seen = await next_of(items, cd_path)
            assert (seen.looked_at > last.looked_at, seen.boot_id) == (True, last.boot_id)
            last = seen
    (container,) = last.containers
    assert (container.state, container.exit_code) == ("exited", 137)


async def next_of(items: AsyncGenerator[WatchItem, None], cd_path: str) -> AppObservation:
    """Return a watch's next item about an app."""
    async for item in items:
        if isinstance(item, AppObservation) and item.cd_path == cd_path:
            return item
    raise AssertionError("the watch ended")


async def test_watch_reports_app_started_later(rig: Rig) -> None:
    cd_path = rig.app()
    async with asyncio.timeout(PATIENCE), aclosing(watching(rig.transport, cd_path)) as items:
        assert isinstance(await anext(items), Snapshot)
        await run(rig.transport, order(cd_path))
        while observed_status((await next_of(items, cd_path)).containers) != "running":
            pass


async def test_observation_shows_current_containers(rig: Rig) -> None:
    cd_path = rig.app()
    assert list((await rig.transport.observe(HostApp(cd_path))).containers) == []
    await run(rig.transport, order(cd_path))
    seen = await rig.transport.observe(HostApp(cd_path))
    (container,) = seen.containers
    assert (seen.cd_path, container.service, container.alive) == (cd_path, "web", True)
    await rig.kill_containers(cd_path)
    (container,) = (await rig.transport.observe(HostApp(cd_path))).containers
    assert (container.alive, container.exit_code) == (False, 137)


async def test_projects_are_listed_with_directory_running_or_not(rig: Rig) -> None:
    cd_path = rig.app()
    assert cd_path not in [found.project.directory for found in await rig.transport.projects()]
    await run(rig.transport, order(cd_path))
    await rig.kill_containers(cd_path)
    (found,) = [each for each in await rig.transport.projects() if each.project.directory == cd_path]
    assert found.project.name == cd_path.rpartition("/")[2]
    assert [c.service for c in found.containers] == ["web"]


async def read_logs(rig: Rig, cd_path: str, wanted: LogsWanted = ALL) -> list[LogLine]:
    """Return the lines of an app."""
    async with asyncio.timeout(PATIENCE):
        return [line async for batch in rig.transport.logs(HostApp(cd_path), wanted) for line in batch]


async def talking(rig: Rig, cd_path: str) -> list[LogLine]:
    """Start an app that writes logs, and return its lines once all have arrived."""
    await run(rig.transport, order(cd_path))
    lines: list[LogLine] = []

    async def all_are_there() -> bool:
        lines[:] = await read_logs(rig, cd_path)
        return tuple(line.text for line in lines) == SAYS

    await eventually_async(all_are_there, timeout=PATIENCE, what="all lines")
    return lines


async def test_logs_are_read_in_order_up_to_requested_tail(rig: Rig) -> None:
    cd_path = rig.talker()
    lines = await talking(rig, cd_path)
    assert tuple(line.text for line in lines) == SAYS
    assert {line.service for line in lines} == {"web"}
    assert {line.container for line in lines} == {f"{cd_path.rpartition('/')[2]}-web-1"}
    assert lines == sorted(lines, key=lambda line: line.time)
    assert await read_logs(rig, cd_path, LogsWanted(tail=2)) == lines[-2:]
    assert await read_logs(rig, cd_path, LogsWanted(tail=0)) == []
    assert await read_logs(rig, cd_path, LogsWanted(tail=-1)) == lines
    assert await read_logs(rig, cd_path, LogsWanted(service="web")) == lines
    assert await read_logs(rig, cd_path, LogsWanted(since=lines[1].time)) == lines[2:]
    with pytest.raises(HostRefusedError) as caught:
        await read_logs(rig, cd_path, LogsWanted(service="nobody"))
    assert caught.value.code == "service_not_found"


async def test_followed_logs_continue_through_restart_without_duplicates(rig: Rig) -> None:
    cd_path = rig.talker()
    before = await talking(rig, cd_path)
    seen: list[LogLine] = []
    wanted = LogsWanted(tail=2, follow=True)
    async with asyncio.timeout(PATIENCE), aclosing(rig.transport.logs(HostApp(cd_path), wanted)) as batches:
        seen += await anext(batches)
        assert seen == before[-2:]
        await rig.kill_containers(cd_path)
        await run(rig.transport, order(cd_path))
        while len(seen) < 2 + len(SAYS):
            seen += await anext(batches)
    assert tuple(line.text for line in seen[2:]) == SAYS
    assert await read_logs(rig, cd_path, LogsWanted(since=before[-1].time, tail=-1)) == seen[2:]


async def test_followed_logs_resume_after_given_line(rig: Rig) -> None:
    cd_path = rig.talker()
    lines = await talking(rig, cd_path)
    wanted = LogsWanted(tail=-1, since=lines[1].time, follow=True)
    async with asyncio.timeout(PATIENCE), aclosing(rig.transport.logs(HostApp(cd_path), wanted)) as batches:
        assert list(await anext(batches)) == lines[2:]


async def test_unreachable_host_is_reported_within_seconds(rig: Rig) -> None:
    began = time.monotonic()
    with pytest.raises(HostUnreachableError) as caught:
        await rig.nowhere.connect()
    assert caught.value.code == "host_unreachable"
    for ask in (rig.nowhere.info, rig.nowhere.projects, partial(rig.nowhere.observe, HostApp("/srv/x"))):
        with pytest.raises(HostUnreachableError):
            await ask()
    assert time.monotonic() - began < 12


async def test_call_that_may_have_been_sent_raises_contact_lost(rig: Rig) -> None:
    """Only `connect` and `info` say "nothing was sent"; all others say "not known"."""
    sent = order(rig.app())
    with pytest.raises(ContactLostError):
        await rig.nowhere.start(sent)
    with pytest.raises(ContactLostError):
        await rig.nowhere.cancel(sent.operation_id, "anna")
    with pytest.raises(ContactLostError):
        await followed(rig.nowhere, sent.operation_id)
    with pytest.raises(ContactLostError):
        await first_word(rig.nowhere, sent.app.cd_path)


async def known(rig: Rig, cd_path: str) -> dict[UUID, int]:
    """Return the deadlines that a watch shows of a directory."""
    async with aclosing(watching(rig.transport, cd_path)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    (seen,) = snapshot.apps
    return dict(seen.deadlines)


async def test_deadline_is_kept_by_agent_and_refused_elsewhere(rig: Rig) -> None:
    cd_path, app_id, run_id = rig.app(), uuid4(), uuid4()
    app, hour = HostApp(cd_path), timedelta(hours=1)
    assert (await rig.transport.info()).keeps_deadlines == (rig.name == "agent")
    if rig.name != "agent":
        with pytest.raises(HostRefusedError) as caught:
            await rig.transport.set_deadline(app, Deadline(app_id, 7, run_id, hour))
        assert caught.value.code == "no_dead_man"
        return
    await rig.transport.set_deadline(app, Deadline(app_id, 7, run_id, hour))
    assert await known(rig, cd_path) == {app_id: 7}
    await rig.transport.set_deadline(app, Deadline(app_id, 6, uuid4(), hour))
    assert await known(rig, cd_path) == {app_id: 7}, "an older one that came late"
    await run(rig.transport, replace(order(cd_path), deadline=Deadline(app_id, 8, uuid4(), hour)))
    assert await known(rig, cd_path) == {app_id: 8}, "a start brings its own"
    await rig.transport.set_deadline(app, Deadline(app_id, 9))
    assert await known(rig, cd_path) == {}
    with pytest.raises(HostUnreachableError):
        await rig.nowhere.set_deadline(app, Deadline(app_id, 10))
