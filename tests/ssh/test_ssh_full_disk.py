"""Hosts without an agent on a full disk: a stop needs no room, a start is refused beforehand."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from full_disks import FULL, SmallDisk
from host_calls import followed, order, run, watching
from lone_agent import compose
from moorage_common.docker.states import OperationKind, observed_status
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import CancelOutcome, EndKind, HostRefusedError, Snapshot
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from transport_rigs import SLOW, SshDesk, remove_ssh_apps, ssh_app


@pytest.fixture(scope="module")
def small(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[tuple[PrivateSshd, SmallDisk]]:
    """Return a host, and the disk with the home of its user `op`."""
    assert sample_image
    with PrivateSshd(short_folder / "small", engine, [LabUser("op")]) as sshd:
        with SmallDisk(sshd.home("op"), sshd.inside) as disk:
            yield sshd, disk
        remove_ssh_apps(sshd, engine)


@pytest.fixture
async def desk(small: tuple[PrivateSshd, SmallDisk]) -> AsyncIterator[SshDesk]:
    """Return the controller's side of that host."""
    made = SshDesk(small[0])
    yield made
    await made.pool.close()


async def stopped(transport: SshTransport, cd_path: str) -> bytes:
    """Send a stop twice, assert its success, and return its output."""
    stop = order(cd_path, OperationKind.DOWN)
    for _ in range(2):
        await transport.start(stop)
    output, end = await followed(transport, stop.operation_id)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0), output
    assert end.observed is not None
    assert list(end.observed.containers) == []
    assert (await followed(transport, stop.operation_id, 10))[0] == output[10:]
    assert await transport.cancel(stop.operation_id, "Ann") is CancelOutcome.ALREADY_ENDED
    return output


@pytest.mark.parametrize("way", FULL)
async def test_stop_needs_no_room_and_a_start_is_refused(
    small: tuple[PrivateSshd, SmallDisk], desk: SshDesk, way: str
) -> None:
    (sshd, disk), before = small, desk.transport()
    cd_paths = [ssh_app(sshd, name=f"{way}-{n}") for n in range(2)]
    for cd_path in cd_paths:
        assert (await run(before, order(cd_path)))[1].exit_code == 0
    with disk.full(way):
        # Over a connection from before the fault, and one from after it.
        for transport, cd_path in zip((before, desk.transport()), cd_paths, strict=True):
            with pytest.raises(HostRefusedError) as refused:
                await transport.start(order(cd_path))
            assert refused.value.code == ("journal_unavailable" if way == "read-only" else "journal_full")
            async with aclosing(watching(transport, cd_path)) as items:
                snapshot = await anext(items)
            assert isinstance(snapshot, Snapshot)
            assert observed_status(snapshot.apps[0].containers) == "running"
            assert str(disk.folder) in snapshot.host.disk_problem
            assert (await transport.info()).disk_problem == snapshot.host.disk_problem
            output = await stopped(transport, cd_path)
            assert b"This stop runs without a journal." in output.splitlines()[0]
            assert f"{way}-".encode() in output
        never = order(cd_paths[0])
        assert await before.cancel(never.operation_id, "Ann") is CancelOutcome.BURIED
        assert (await followed(before, never.operation_id))[1].kind is EndKind.BURIED
    assert (await run(before, order(cd_paths[0])))[1].exit_code == 0
    assert b"without a journal" not in await stopped(before, cd_paths[0])


@pytest.mark.parametrize("way", FULL[:2])
async def test_stop_without_journal_waits_for_cancellable_start(
    small: tuple[PrivateSshd, SmallDisk], desk: SshDesk, way: str
) -> None:
    (sshd, disk), transport = small, desk.transport()
    cd_path = ssh_app(sshd, SLOW)
    starting = order(cd_path)
    await transport.start(starting)
    with disk.full(way):
        _, end = await run(transport, order(cd_path, OperationKind.DOWN))
        assert (end.kind, end.code) == (EndKind.BURIED, "directory_busy")
        await transport.cancel(starting.operation_id, "Ann")
        await followed(transport, starting.operation_id)
        await stopped(transport, cd_path)


async def test_stop_works_with_read_only_home(
    small: tuple[PrivateSshd, SmallDisk], desk: SshDesk, engine: PrivateEngine
) -> None:
    """Nothing was ever stored there, and the host has no Compose of its own: only the labels identify the app."""
    sshd, disk = small
    cd_path = ssh_app(sshd)
    compose(engine, Path(cd_path), "up", "-d")
    state = sshd.home("op") / ".local"
    disk.run("rm", "-rf", str(state))
    with disk.full("read-only"):
        output = await stopped(desk.transport(), cd_path)
        assert b"Removed" in output
