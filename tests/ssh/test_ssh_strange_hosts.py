"""Hosts as found in the field: each peculiarity either works or is reported in one sentence."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from host_calls import followed, order, run, watching
from moorage_common.docker.logs import LogsWanted
from moorage_common.docker.states import OperationKind, observed_status
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import (
    CancelOutcome,
    ContactLostError,
    EndKind,
    HostApp,
    HostInfo,
    HostRefusedError,
    Order,
    Snapshot,
)
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.programs.sshd import PrivateSshd
from moorage_lab.waiting import eventually_async
from transport_rigs import QUICK, SLOW, SshDesk, docker_plugin, ssh_app

from .conftest import SHELLS
from .disks import fill, small_disk

StartSshd = Callable[..., PrivateSshd]


async def whole_life(transport: SshTransport, cd_path: str) -> str:
    """Start, watch, and stop an app; return what the start printed."""
    output, end = await run(transport, order(cd_path))
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0), output
    async with asyncio.timeout(30), aclosing(watching(transport, cd_path)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    assert observed_status(snapshot.apps[0].containers) == "running"
    stopped, end = await run(transport, order(cd_path, OperationKind.DOWN))
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0), stopped
    assert end.observed is not None
    assert list(end.observed.containers) == []
    return output.decode()


async def refusal(transport: SshTransport, cd_path: str) -> HostRefusedError:
    with pytest.raises(HostRefusedError) as caught:
        await transport.start(order(cd_path))
    assert caught.value.sentence.endswith(".")
    return caught.value


@pytest.mark.parametrize("user", [f"u-{name}" for name in SHELLS] + ["noisy"])
async def test_every_login_shell_is_supported(desk: SshDesk, user: str) -> None:
    assert "Started" in await whole_life(desk.transport(user), ssh_app(desk.sshd))


async def test_compose_is_uploaded_once_and_reported(desk: SshDesk, start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    own = SshDesk(sshd)
    assert "Uploaded to the host: 31 MiB" in await whole_life(own.transport(), ssh_app(sshd))
    (program,) = (sshd.home("op") / ".local/state/moorage/bin").iterdir()
    assert program.read_bytes() == await asyncio.to_thread(Path(installed("docker-compose")).read_bytes)
    assert program.stat().st_uid == sshd.uid("op")
    made = program.stat().st_ino
    # Another controller, or this one after a restart:
    other = SshDesk(sshd)
    assert "Uploaded" not in await whole_life(other.transport(), ssh_app(sshd))
    assert program.stat().st_ino == made
    await own.pool.close()
    await other.pool.close()
    del desk


async def test_user_without_shell_is_reported(desk: SshDesk) -> None:
    with pytest.raises(HostUnreachableError) as caught:
        await desk.transport("nologin").connect()
    assert caught.value.code == "no_shell"
    assert "This account is currently not available" in caught.value.sentence


async def test_user_without_docker_access_is_reported(desk: SshDesk) -> None:
    transport = desk.transport("poor")
    info = await transport.info()
    assert not info.engine_reachable
    assert "The SSH user poor may not use Docker: add it to the group" in info.engine_problem
    error = await refusal(transport, ssh_app(desk.sshd))
    assert (error.code, error.sentence) == ("engine_unreachable", info.engine_problem)
    async with asyncio.timeout(30), aclosing(watching(transport)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.host.engine_problem == info.engine_problem


async def test_docker_by_sudo_works_with_host_compose(desk: SshDesk) -> None:
    transport = desk.transport("sudoer")
    with docker_plugin(desk.sshd):
        info = await transport.info()
        assert (info.engine_reachable, info.engine_problem) == (True, "")
        await whole_life(transport, ssh_app(desk.sshd))


async def test_start_by_sudo_can_be_cancelled(desk: SshDesk) -> None:
    """Sudo forwards the signal."""
    transport = desk.transport("sudoer")
    sent = Order(uuid4(), OperationKind.UP, HostApp(ssh_app(desk.sshd, SLOW)))
    with docker_plugin(desk.sshd):
        await transport.start(sent)
        await eventually_async(lambda: begun(desk.sshd, sent), what="the command")
        assert await transport.cancel(sent.operation_id, "anna") is CancelOutcome.SIGNALLED
        _, end = await followed(transport, sent.operation_id)
    assert (end.kind, end.cancelled_by) == (EndKind.EXITED, "anna")
    assert end.exit_code != 0


def begun(sshd: PrivateSshd, sent: Order) -> bool:
    """Whether Compose was called, by sudo."""
    journal = sshd.home("sudoer") / ".local/state/moorage/operations" / str(sent.operation_id)
    process = (journal / "pid").read_text()
    if not process.endswith(" end\n"):
        return False
    return Path(f"/proc/{int(process.split()[1])}/cmdline").read_bytes().startswith(b"sudo")


async def test_docker_by_sudo_without_host_compose_is_reported(desk: SshDesk) -> None:
    info = await desk.transport("sudoer").info()
    error = await refusal(desk.transport("sudoer"), ssh_app(desk.sshd))
    assert (error.code, error.sentence) == ("compose_missing", info.engine_problem)
    assert "install Docker's Compose plugin there" in error.sentence


@pytest.mark.parametrize("options", [("AllowStreamLocalForwarding no",), ("DisableForwarding yes", "MaxSessions 2")])
async def test_sshd_without_forwarding_is_supported(start_sshd: StartSshd, options: tuple[str, ...]) -> None:
    sshd = start_sshd(*options)
    desk = SshDesk(sshd)
    transport = desk.transport()
    assert "Started" in await whole_life(transport, ssh_app(sshd))
    await desk.pool.close()


async def test_few_sessions_limit_concurrently_followed_logs(start_sshd: StartSshd) -> None:
    sshd = start_sshd("DisableForwarding yes")
    desk = SshDesk(sshd)
    transport = desk.transport()
    service = QUICK.partition("services:\n")[2].replace("sleep 600", "sh -c 'while echo tick; do sleep 0.2; done'")
    cd_path = ssh_app(sshd, "services:\n" + "".join(service.replace("web:", f"web{n}:", 1) for n in range(3)))
    await run(transport, order(cd_path))
    with pytest.raises(HostRefusedError) as caught:
        await anext(transport.logs(HostApp(cd_path), LogsWanted(follow=True)))
    assert caught.value.code == "too_many_logs"
    async with aclosing(transport.logs(HostApp(cd_path), LogsWanted(service="web1", follow=True))) as batches:
        for _ in range(3):
            assert {line.service for line in await anext(batches)} == {"web1"}
        lines = [line async for batch in transport.logs(HostApp(cd_path), LogsWanted(tail=1)) for line in batch]
        assert sorted(line.service for line in lines) == ["web0", "web1", "web2"]
    assert (await run(transport, order(cd_path, OperationKind.DOWN)))[1].exit_code == 0
    await desk.pool.close()


async def test_unwritable_home_is_reported(desk: SshDesk) -> None:
    home = desk.sshd.home("locked-in")
    shutil.chown(home, 0, 0)
    error = await refusal(desk.transport("locked-in"), ssh_app(desk.sshd))
    assert error.code == "journal_unavailable"
    assert f"can't write in {home}/.local/state/moorage" in error.sentence


async def test_full_disk_is_reported_and_starts_nothing(start_sshd: StartSshd, engine: PrivateEngine) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    cd_path = ssh_app(sshd)
    await whole_life(desk.transport(), cd_path)
    state = sshd.home("op") / ".local/state/moorage"
    with small_disk(sshd, state / "operations") as disk:
        filler = disk / "filler"
        await asyncio.to_thread(fill, filler)
        transport = desk.transport()
        error = await refusal(transport, cd_path)
        assert error.code == "journal_full"
        filler.unlink()
        await whole_life(transport, cd_path)
    await desk.pool.close()
    del engine


async def test_host_without_docker_is_reported(start_sshd: StartSshd) -> None:
    sshd = start_sshd("SetEnv DOCKER_HOST=unix:///nonexistent/docker.sock")
    desk = SshDesk(sshd)
    info = await desk.transport().info()
    assert not info.engine_reachable
    assert "/nonexistent/docker.sock doesn't answer" in info.engine_problem
    await desk.pool.close()


async def test_repaired_host_is_detected_automatically(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    late = sshd.folder / "late.sock"
    sshd.stop()
    sshd.options.append(f"SetEnv DOCKER_HOST=unix://{late}")
    sshd.start()
    desk = SshDesk(sshd)
    transport = desk.transport()
    async with asyncio.timeout(60):
        problem = ""
        while problem or not late.is_symlink():
            with suppress(ContactLostError):
                async with aclosing(watching(transport)) as items:
                    async for item in items:
                        assert isinstance(item, (Snapshot, HostInfo))
                        problem = (item.host if isinstance(item, Snapshot) else item).engine_problem
                        if not late.is_symlink():
                            assert f"{late} doesn't answer" in problem
                            late.symlink_to(sshd.folder / "engine" / "docker.sock")
                        if not problem:
                            break
    await desk.pool.close()


async def test_old_compose_is_refused(start_sshd: StartSshd) -> None:
    """Only its own Compose is left to a host whose state folder may hold no programs."""
    sshd = start_sshd()
    tools = sshd.folder / "tools"
    tools.mkdir()
    (tools / "docker").write_text('#!/bin/sh\n[ "$1" != compose ] || exit 1\n')
    (tools / "docker-compose").write_text("#!/bin/sh\necho 1.29.2\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    sshd.stop()
    sshd.options.append(f"SetEnv PATH={tools}:/usr/bin:/bin DOCKER_HOST=unix://{sshd.folder}/engine/docker.sock")
    sshd.start()
    desk = SshDesk(sshd)
    binaries = sshd.home("op") / ".local/state/moorage/bin"
    await desk.transport().connect()
    with small_disk(sshd, binaries, "noexec,size=64m"):
        error = await refusal(desk.transport(), ssh_app(sshd))
    assert error.code == "compose_v1"
    assert "1.29.2" in error.sentence
    await desk.pool.close()
