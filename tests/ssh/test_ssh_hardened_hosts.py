"""Hardened and minimal hosts: permitted operations work, and impossible ones are reported within seconds."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from host_calls import order, run, watching
from moorage_common.docker.states import ContainerState, OperationKind, observed_status
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import (
    AppObservation,
    HostApp,
    HostInfo,
    HostRefusedError,
    Snapshot,
    WatchItem,
)
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.programs.sshd import LabUser, PrivateDropbear, PrivateSshd
from moorage_lab.waiting import eventually_async
from transport_rigs import SshDesk, remove_ssh_apps, ssh_app

from .disks import small_disk

StartSshd = Callable[..., PrivateSshd]

_WITHIN_SECONDS = 10.0


async def unreachable(desk: SshDesk, user: str = "op") -> HostUnreachableError:
    """Return the common error of a check and a start, which comes within seconds."""
    told = []
    for question in (desk.transport(user).info, desk.transport(user).connect):
        began = time.monotonic()
        with pytest.raises(HostUnreachableError) as caught:
            await question()
        assert time.monotonic() - began < _WITHIN_SECONDS
        assert caught.value.sentence.endswith(".")
        told.append((caught.value.code, caught.value.sentence))
    assert told[0] == told[1]
    return caught.value


async def whole_life(desk: SshDesk) -> Sequence[ContainerState] | None:
    """Start and stop an app; return the containers that the stop leaves, None if nobody looked."""
    transport, cd_path = desk.transport(), ssh_app(desk.sshd)
    assert (await transport.info()).engine_reachable
    output, end = await run(transport, order(cd_path))
    assert end.exit_code == 0, output
    output, end = await run(transport, order(cd_path, OperationKind.DOWN))
    assert end.exit_code == 0, output
    await desk.pool.close()
    return None if end.observed is None else list(end.observed.containers)


async def test_dropbear_is_supported(engine: PrivateEngine, sample_image: str, short_folder: Path) -> None:
    assert sample_image
    with PrivateDropbear(short_folder / uuid4().hex[:8], engine, [LabUser("op")]) as host:
        try:
            assert await whole_life(SshDesk(host)) == []
        finally:
            remove_ssh_apps(host, engine)


@pytest.mark.parametrize(
    "options",
    [
        ("AllowTcpForwarding no", "AllowStreamLocalForwarding no"),
        ("MaxSessions 1",),
    ],
)
async def test_restricted_sshd_is_supported(start_sshd: StartSshd, options: tuple[str, ...]) -> None:
    assert await whole_life(SshDesk(start_sshd(*options))) == []


async def test_one_session_without_forwarding_is_refused(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("MaxSessions 1", "DisableForwarding yes")))
    assert error.code == "ssh_sessions_too_few"
    assert "MaxSessions" in error.sentence
    assert "AllowStreamLocalForwarding" in error.sentence


async def test_sshd_without_sessions_is_reported(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("MaxSessions 0")))
    assert error.code == "ssh_sessions_too_few"


async def test_sftp_only_user_is_reported(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("ForceCommand internal-sftp", "Subsystem sftp internal-sftp")))
    assert error.code == "no_shell"
    assert "ForceCommand" in error.sentence


async def test_expired_password_is_reported(start_sshd: StartSshd) -> None:
    user = LabUser("op", password="old", expired=True)  # noqa: S106 - of a user that lives as long as the test
    desk = SshDesk(start_sshd(users=(user,)))
    desk.credentials = SshCredentials(password="old")  # noqa: S106 - the lab's
    error = await unreachable(desk)
    assert error.code == "password_expired"
    assert "set a new one" in error.sentence


async def test_missing_tool_on_host_is_reported(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    with sshd.bound(Path("/dev/null"), Path("/usr/bin/flock")):
        error = await unreachable(SshDesk(sshd))
    assert error.code == "host_tools_missing"
    assert "flock" in error.sentence


async def test_noexec_home_is_reported_before_any_start(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk, home = SshDesk(sshd), sshd.home("op")
    with small_disk(sshd, home, "noexec,size=64m"):
        info = await desk.transport().info()
        assert not info.engine_reachable
        assert f"no program can be run from {home}/.local/state/moorage/bin" in info.engine_problem
        error = await refused_start(desk)
        assert (error.code, error.sentence) == ("compose_missing", info.engine_problem)
        async with asyncio.timeout(30), aclosing(watching(desk.transport())) as items:
            snapshot = await anext(items)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.host.engine_problem == info.engine_problem
    await desk.pool.close()


async def test_read_only_home_ends_start_within_seconds(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    with small_disk(sshd, sshd.home("op"), "ro,size=64m"):
        error = await refused_start(desk)
    assert error.code == "journal_unavailable"
    assert "can't write in" in error.sentence
    await desk.pool.close()


async def test_host_compose_is_used_when_upload_is_impossible(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    await desk.transport().connect()
    plugins = sshd.home("op") / ".docker" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(installed("docker-compose"))
    with small_disk(sshd, sshd.home("op") / ".local/state/moorage/bin", "noexec,size=64m"):
        assert await whole_life(desk) == []
        assert list((sshd.home("op") / ".local/state/moorage/bin").iterdir()) == []


async def refused_start(desk: SshDesk) -> HostRefusedError:
    began = time.monotonic()
    with pytest.raises(HostRefusedError) as caught:
        await desk.transport().start(order(ssh_app(desk.sshd)))
    assert time.monotonic() - began < _WITHIN_SECONDS
    return caught.value


@pytest.mark.parametrize("options", [(), ("AllowStreamLocalForwarding no",)])
async def test_channel_closed_by_host_is_reopened_silently(
    start_sshd: StartSshd, engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    sshd = start_sshd("ChannelTimeout *=2s", *options)
    desk = SshDesk(sshd)
    transport, cd_path = desk.transport(), ssh_app(sshd)
    _, end = await run(transport, order(cd_path))
    assert end.observed is not None
    items: list[WatchItem] = []
    watch = asyncio.create_task(_collect(transport, cd_path, items))
    await eventually_async(lambda: items, what="the first look")
    async with transport._host.site() as site:
        closed = _count_closed(monkeypatch, site.link)
        await eventually_async(lambda: closed() >= 3, what="channels that the host closes")
    # Meanwhile the long-lived shell was closed, too.
    assert (await transport.observe(HostApp(cd_path))).containers
    with closing(docker.APIClient(base_url=engine.host, version="auto")) as client:
        await asyncio.to_thread(client.kill, end.observed.containers[0].id)
    await eventually_async(lambda: _last_status(items) == "stopped", what="the death")
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    hosts = [item.host if isinstance(item, Snapshot) else item for item in items]
    assert [host.engine_problem for host in hosts if isinstance(host, HostInfo) and host.engine_problem] == []
    await desk.pool.close()


async def _collect(transport: SshTransport, cd_path: str, items: list[WatchItem]) -> None:
    async with aclosing(watching(transport, cd_path)) as watched:
        async for item in watched:
            items += [item]


def _last_status(items: list[WatchItem]) -> str:
    seen = [item for item in items if isinstance(item, AppObservation)]
    return observed_status(seen[-1].containers) if seen else ""


def _count_closed(monkeypatch: pytest.MonkeyPatch, link: HostSession) -> Callable[[], int]:
    """Return a counter of the openings of the Engine's event stream from now on."""
    opened, events = [0], link.engine.events

    def counting(since: int) -> AsyncGenerator[str, None]:
        opened[0] += 1
        return events(since)

    monkeypatch.setattr(link.engine, "events", counting)
    return lambda: opened[0]


async def test_slow_login_shell_is_reported_and_wait_is_configurable(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    (sshd.home("op") / ".bashrc").write_text("sleep 2\n")
    error = await unreachable(SshDesk(sshd, login_shell_seconds=1))
    assert error.code == "login_shell_slow"
    assert error.sentence == "The login shell took longer than 1 s: look at its start-up files."
    patient = SshDesk(sshd, login_shell_seconds=30)
    await patient.transport().connect()
    assert (await patient.transport().info()).engine_reachable
    await patient.pool.close()
