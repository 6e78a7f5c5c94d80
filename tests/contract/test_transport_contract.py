"""What services count on, whatever the way to a host: see the docstrings of HostTransport."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

import pytest
from host_calls import followed, order, run, watching
from moorage_common.states import OperationKind, observed_status
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    End,
    EndKind,
    HostInfo,
    HostRefusedError,
    HostTransport,
    Output,
    Snapshot,
    WatchItem,
)
from rigs import Rig

PATIENCE = 30.0


def facts(end: End) -> tuple[object, ...]:
    """Return what of an end must be the same whenever it is asked for; the look at the containers is made anew."""
    return (end.kind, end.exit_code, end.length, end.cancelled_by, end.code, end.reason)


async def test_a_host_tells_its_facts(rig: Rig) -> None:
    await rig.transport.connect()
    info = await rig.transport.info()
    assert isinstance(info, HostInfo)
    assert (info.engine_reachable, info.engine_problem) == (True, "")
    assert info.uptime > 0
    assert bool(info.agent_version) == (rig.name == "agent")
    assert info.engine_version
    assert info.compose_version
    assert rig.transport.name == rig.name


async def test_a_start_is_followedto_its_end_with_what_there_is_afterwards(rig: Rig) -> None:
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


async def test_a_second_start_of_the_same_id_attaches(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    await rig.transport.start(sent)
    first, end = await followed(rig.transport, sent.operation_id)
    await rig.transport.start(sent)
    assert (await followed(rig.transport, sent.operation_id))[0] == first
    # What ran twice would have printed twice.
    assert end.length == len(first)
    assert first.count(b'"Starting"') <= 1


async def test_following_twice_tells_the_same_and_from_an_offset_the_rest(rig: Rig) -> None:
    sent = order(rig.app())
    whole, end = await run(rig.transport, sent)
    again, same = await followed(rig.transport, sent.operation_id)
    assert (again, facts(same)) == (whole, facts(end))
    for after in (1, len(whole) // 2, len(whole)):
        rest, same = await followed(rig.transport, sent.operation_id, after)
        assert (rest, facts(same)) == (whole[after:], facts(end))


async def test_two_may_follow_at_once(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    one, other = await asyncio.gather(*(followed(rig.transport, sent.operation_id) for _ in range(2)))
    assert (one[0], facts(one[1])) == (other[0], facts(other[1]))


async def test_who_stops_following_changes_nothing(rig: Rig) -> None:
    sent = order(rig.app())
    await rig.transport.start(sent)
    async with aclosing(rig.transport.follow(sent.operation_id, 0)) as items:
        first = await anext(items)
    assert isinstance(first, (Output, End))
    _, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)


async def test_an_operation_nobody_sent_is_unknown(rig: Rig) -> None:
    with pytest.raises(HostRefusedError) as caught:
        await followed(rig.transport, uuid4())
    assert caught.value.code == "operation_unknown"
    assert caught.value.sentence.endswith(".")


async def test_a_cancelled_start_ends_and_says_who_did_it(rig: Rig) -> None:
    sent = order(rig.slow_app())
    await rig.transport.start(sent)
    assert await rig.transport.cancel(sent.operation_id, "anna") is CancelOutcome.SIGNALLED
    output, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.cancelled_by, end.length) == (EndKind.EXITED, "anna", len(output))
    assert end.exit_code != 0
    assert await rig.transport.cancel(sent.operation_id, "bert") is CancelOutcome.ALREADY_ENDED
    assert (await followed(rig.transport, sent.operation_id))[1].cancelled_by == "anna"


async def test_a_cancel_of_what_never_came_keeps_it_from_ever_starting(rig: Rig) -> None:
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


async def test_a_stop_can_t_be_cancelled(rig: Rig) -> None:
    sent = order(rig.app(), OperationKind.DOWN)
    await rig.transport.start(sent)
    with pytest.raises(HostRefusedError) as caught:
        await rig.transport.cancel(sent.operation_id, "anna")
    assert caught.value.code == "not_cancellable"
    _, end = await followed(rig.transport, sent.operation_id)
    assert (end.kind, end.exit_code, end.cancelled_by) == (EndKind.EXITED, 0, "")


async def first_word(transport: HostTransport, *paths: str) -> Snapshot:
    """Return a watch's first word."""
    async with asyncio.timeout(PATIENCE), aclosing(watching(transport, *paths)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    return snapshot


async def test_a_watch_begins_with_everything_and_tells_of_each_death(rig: Rig) -> None:
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
    """Return the next that a watch tells of an app."""
    async for item in items:
        if isinstance(item, AppObservation) and item.cd_path == cd_path:
            return item
    raise AssertionError("the watch ended")


async def test_a_watch_tells_of_an_app_that_was_started_meanwhile(rig: Rig) -> None:
    cd_path = rig.app()
    async with asyncio.timeout(PATIENCE), aclosing(watching(rig.transport, cd_path)) as items:
        assert isinstance(await anext(items), Snapshot)
        await run(rig.transport, order(cd_path))
        while observed_status((await next_of(items, cd_path)).containers) != "running":
            pass


async def test_a_host_that_isn_t_there_is_told_within_seconds(rig: Rig) -> None:
    began = time.monotonic()
    with pytest.raises(HostUnreachableError) as caught:
        await rig.nowhere.connect()
    assert caught.value.code == "host_unreachable"
    with pytest.raises(HostUnreachableError):
        await rig.nowhere.info()
    assert time.monotonic() - began < 12


async def test_once_something_may_have_been_sent_nothing_is_claimed(rig: Rig) -> None:
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
