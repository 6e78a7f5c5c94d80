"""Connection loss at every step: operations continue, nothing is left behind, and no unknown state is claimed."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from host_calls import followed, order, watching
from moorage_common.docker.states import observed_status
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    EndKind,
    HostInfo,
    Output,
    Snapshot,
    WatchItem,
)
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.pids import Pid
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually, eventually_async
from transport_rigs import FEW_SECONDS, QUICK, SLOW, SshDesk, ssh_app

StartSshd = Callable[..., PrivateSshd]


def processes(sshd: PrivateSshd, user: str) -> list[str]:
    """Return the command lines of a user's processes."""
    found = []
    for number in running(sshd, user):
        with suppress(OSError):
            line = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found += [line] if line else []
    return found


def running(sshd: PrivateSshd, user: str) -> list[int]:
    """Return the ids of a user's processes, without zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid == sshd.uid(user):
                pid = Pid.of(int(folder.name))
                found += [pid.id] if pid is not None and pid.alive else []
    return found


def kill_all(sshd: PrivateSshd, user: str) -> bool:
    """Kill a user's processes; False while any are left, such as ones that have just started."""
    for number in running(sshd, user):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return not running(sshd, user)


async def test_start_survives_dropped_connections_without_leftovers(
    start_sshd: StartSshd,
) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    transport = desk.transport()
    sent = order(ssh_app(sshd, FEW_SECONDS))
    await transport.start(sent)
    raw = b""
    try:
        async for item in transport.follow(sent.operation_id, 0):
            assert isinstance(item, Output)
            raw += item.data
            await asyncio.to_thread(sshd.drop_connections)
    except ContactLostError:
        pass
    else:
        raise AssertionError("the connection was not lost")
    assert raw
    rest, end = await followed(transport, sent.operation_id, len(raw))
    assert (end.kind, end.exit_code, end.length) == (EndKind.EXITED, 0, len(raw + rest))
    await desk.pool.close()
    await eventually_async(lambda: not processes(sshd, "op"), what="nothing of ours left on the host")


async def test_other_controller_attaches_to_operation_by_id(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    first, second = SshDesk(sshd), SshDesk(sshd)
    sent = order(ssh_app(sshd, FEW_SECONDS))
    await first.transport().start(sent)
    await asyncio.to_thread(sshd.drop_connections)
    await first.pool.close()
    await second.transport().start(sent)
    raw, end = await followed(second.transport(), sent.operation_id)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)
    assert raw.count(b'"Creating"') <= 4  # what ran twice would have printed twice
    await second.pool.close()


async def test_connection_cut_before_go_starts_nothing(desk: SshDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = desk.transport()
    cd_path = ssh_app(desk.sshd)
    await transport.connect()
    sent = order(cd_path)
    async with transport._host.site() as site:
        looked = site.link.engine.containers

        async def cut() -> object:
            site.link.connection.abort()
            return await looked()

        monkeypatch.setattr(site.link.engine, "containers", cut)
        with pytest.raises(ContactLostError):
            await transport.start(sent)
    assert await transport.cancel(sent.operation_id, "anna") is CancelOutcome.BURIED
    async with asyncio.timeout(30), aclosing(watching(transport, cd_path)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    assert [list(app.containers) for app in snapshot.apps] == [[]]


async def test_operation_with_all_processes_killed_is_lost(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    sent = order(ssh_app(sshd, SLOW))
    await desk.transport().start(sent)
    await asyncio.to_thread(eventually, lambda: kill_all(sshd, "op"), what="the end of all")
    transport = desk.transport()
    _, end = await followed(transport, sent.operation_id)
    assert end.kind is EndKind.LOST
    await desk.pool.close()


async def test_network_blackhole_is_detected_and_survived(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    transport = desk.transport()
    sent = order(ssh_app(sshd, FEW_SECONDS))
    await transport.start(sent)
    following = asyncio.create_task(followed(transport, sent.operation_id))
    await eventually_async(lambda: transport._host._site is not None and transport._host._site.users, what="following")
    with sshd.hanging():
        began = time.monotonic()
        with pytest.raises(HostUnreachableError):
            await transport.connect()
        assert time.monotonic() - began < 25  # 15 by itself, more beside a busy neighbour
        with pytest.raises(ContactLostError):
            await following
        assert time.monotonic() - began < 40
    _, end = await followed(transport, sent.operation_id)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0)
    await desk.pool.close()


async def test_two_sessions_suffice_for_concurrent_work(start_sshd: StartSshd) -> None:
    sshd = start_sshd("MaxSessions 2")
    desk = SshDesk(sshd)
    transport = desk.transport()
    apps = [ssh_app(sshd, QUICK) for _ in range(4)]
    async with asyncio.timeout(150), aclosing(watching(transport, *apps)) as items:
        assert isinstance(await anext(items), Snapshot)
        orders = [order(path) for path in apps]
        work = [asyncio.create_task(transport.start(sent)) for sent in orders]
        slowest = 0.0
        while not all(task.done() for task in work):
            began = time.monotonic()
            assert (await transport.info()).engine_reachable
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
        await asyncio.gather(*work)
        ends = await asyncio.gather(*(followed(transport, sent.operation_id) for sent in orders))
        assert [end.exit_code for _, end in ends] == [0, 0, 0, 0]
        running: set[str] = set()
        async for item in items:
            if isinstance(item, AppObservation) and observed_status(item.containers) == "running":
                running.add(item.cd_path)
            if running == set(apps):
                break
    # A probe needs no session: it never waits behind an operation.
    assert slowest < 3
    await desk.pool.close()


async def test_fifty_concurrent_starts_succeed(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    transport = desk.transport()
    paths = [sshd.apps / f"empty-{number}" for number in range(50)]
    for path in paths:
        path.mkdir()
    orders = [order(str(path)) for path in paths]
    async with asyncio.timeout(150):
        await asyncio.gather(*(transport.start(sent) for sent in orders))
        ends = await asyncio.gather(*(followed(transport, sent.operation_id) for sent in orders))
    assert {(end.kind, end.exit_code) for _, end in ends} == {(EndKind.EXITED, 1)}
    assert sshd.process.log.read_text().count("Accepted publickey") == 1
    await desk.pool.close()


async def next_host(items: AsyncGenerator[WatchItem, None], *, reachable: bool) -> HostInfo:
    async for item in items:
        if isinstance(item, HostInfo) and item.engine_reachable is reachable:
            return item
    raise AssertionError("the watch ended")


async def test_hung_engine_and_recovery_are_reported(desk: SshDesk, engine: PrivateEngine) -> None:
    transport = desk.transport()
    cd_path = ssh_app(desk.sshd)
    sent = order(cd_path)
    await transport.start(sent)
    await followed(transport, sent.operation_id)
    async with asyncio.timeout(90), aclosing(watching(transport, cd_path)) as items:
        assert isinstance(await anext(items), Snapshot)
        engine.hang()
        try:
            assert "didn't answer within" in (await next_host(items, reachable=False)).engine_problem
            assert not (await transport.info()).engine_reachable
        finally:
            engine.go_on()
        back = [item async for item in until_host_is_back(items)]
    assert [i.cd_path for i in back if isinstance(i, AppObservation)] == [cd_path]


async def until_host_is_back(items: AsyncGenerator[WatchItem, None]) -> AsyncGenerator[WatchItem, None]:
    async for item in items:
        yield item
        if isinstance(item, HostInfo) and item.engine_reachable:
            return


async def test_container_exit_shows_within_a_second(desk: SshDesk, engine: PrivateEngine) -> None:
    transport = desk.transport()
    cd_path = ssh_app(desk.sshd)
    sent = order(cd_path)
    await transport.start(sent)
    _, end = await followed(transport, sent.operation_id)
    assert end.observed is not None
    client = docker.APIClient(base_url=engine.host, version="auto")
    async with asyncio.timeout(30), aclosing(watching(transport, cd_path)) as items:
        await anext(items)
        await asyncio.to_thread(client.kill, end.observed.containers[0].id)
        began = time.monotonic()
        async for item in items:
            if isinstance(item, AppObservation) and observed_status(item.containers) == "stopped":
                break
    client.close()
    assert time.monotonic() - began < 1


async def test_credential_change_interrupts_no_operation(start_sshd: StartSshd) -> None:
    sshd = start_sshd(users=(LabUser("op"),))
    desk = SshDesk(sshd)
    server = uuid4()
    old = SshTransport(desk.pool.host(desk.target(server_id=server)))
    sent = order(ssh_app(sshd, FEW_SECONDS))
    await old.start(sent)
    following = asyncio.create_task(followed(old, sent.operation_id))
    await eventually_async(lambda: old._host._site is not None and old._host._site.users, what="following")
    new = SshTransport(desk.pool.host(replace(desk.target(server_id=server), credentials="others")))
    await new.connect()
    _, end = await following
    assert end.exit_code == 0
    await eventually_async(lambda: sshd.connections == 2, what="the old connection closed, the new one open")
    await desk.pool.close()


async def test_shell_running_many_scripts_does_not_grow(start_sshd: StartSshd) -> None:
    desk = SshDesk(start_sshd())
    async with desk.transport()._host.site() as site:
        first = (await site.link.run_in_shell('printf "%s" "$PATH"')).text
        for _ in range(20):
            await site.link.run_in_shell(":")
        # If it grew with each script, it would exceed the kernel's limit after two thousand: no program could start.
        assert (await site.link.run_in_shell('printf "%s" "$PATH"')).text == first
        # And where none can start, a query of a path still ends.
        assert (await site.link.run_in_shell("PATH=/nowhere; mo_real /srv/x/y", seconds=5)).fields == ["/srv/x/y"]
    await desk.pool.close()
