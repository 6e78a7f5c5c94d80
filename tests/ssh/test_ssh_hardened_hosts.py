"""Hosts that were hardened, or are small: what they allow works, and what can never succeed is said within seconds."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from host_calls import order, run, watching
from moorage_common.states import OperationKind
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.transport import HostRefusedError, Snapshot
from moorage_lab.engine import PrivateEngine
from moorage_lab.processes import installed
from moorage_lab.sshd import LabUser, PrivateDropbear, PrivateSshd
from rigs import SshDesk, remove_ssh_apps, ssh_app

from .disks import small_disk

StartSshd = Callable[..., PrivateSshd]

_WITHIN_SECONDS = 10.0


async def unreachable(desk: SshDesk, user: str = "op") -> HostUnreachableError:
    """Return what a check and a start are told of, which is the same, and within seconds."""
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


async def whole_life(desk: SshDesk) -> None:
    transport, cd_path = desk.transport(), ssh_app(desk.sshd)
    assert (await transport.info()).engine_reachable
    output, end = await run(transport, order(cd_path))
    assert end.exit_code == 0, output
    output, end = await run(transport, order(cd_path, OperationKind.DOWN))
    assert end.exit_code == 0, output
    await desk.pool.close()


async def test_dropbear_will_do(engine: PrivateEngine, sample_image: str, short_folder: Path) -> None:
    assert sample_image
    with PrivateDropbear(short_folder / uuid4().hex[:8], engine, [LabUser("op")]) as host:
        try:
            await whole_life(SshDesk(host))
        finally:
            remove_ssh_apps(host, engine)


@pytest.mark.parametrize(
    "options",
    [
        ("AllowTcpForwarding no", "AllowStreamLocalForwarding no"),
        ("MaxSessions 1",),
    ],
)
async def test_a_server_that_allows_little_will_do(start_sshd: StartSshd, options: tuple[str, ...]) -> None:
    await whole_life(SshDesk(start_sshd(*options)))


async def test_one_session_and_no_forwarding_are_too_little(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("MaxSessions 1", "DisableForwarding yes")))
    assert error.code == "ssh_sessions_too_few"
    assert "MaxSessions" in error.sentence
    assert "AllowStreamLocalForwarding" in error.sentence


async def test_no_session_at_all_is_told(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("MaxSessions 0")))
    assert error.code == "ssh_sessions_too_few"


async def test_a_user_for_files_alone_is_told(start_sshd: StartSshd) -> None:
    error = await unreachable(SshDesk(start_sshd("ForceCommand internal-sftp", "Subsystem sftp internal-sftp")))
    assert error.code == "no_shell"
    assert "ForceCommand" in error.sentence


async def test_an_expired_password_is_told(start_sshd: StartSshd) -> None:
    user = LabUser("op", password="old", expired=True)  # noqa: S106 - of a user that lives as long as the test
    desk = SshDesk(start_sshd(users=(user,)))
    desk.credentials = SshCredentials(password="old")  # noqa: S106 - the lab's
    error = await unreachable(desk)
    assert error.code == "password_expired"
    assert "set a new one" in error.sentence


async def test_a_host_without_a_tool_is_told(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    with no_program(sshd, "flock"):
        error = await unreachable(SshDesk(sshd))
    assert error.code == "host_tools_missing"
    assert "flock" in error.sentence


@contextmanager
def no_program(sshd: PrivateSshd, name: str) -> Iterator[None]:
    """Take a program away from the lab's sshd."""
    inside = ["nsenter", "--target", str(sshd.process.pid), "--mount", "--"]
    subprocess.run([*inside, "mount", "--bind", "/dev/null", f"/usr/bin/{name}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", "--lazy", f"/usr/bin/{name}"], check=True)


async def test_a_home_without_programs_is_told_before_anything_is_started(start_sshd: StartSshd) -> None:
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


async def test_where_no_program_can_be_uploaded_the_host_s_own_compose_will_do(start_sshd: StartSshd) -> None:
    sshd = start_sshd()
    await SshDesk(sshd).transport().connect()
    plugins = sshd.home("op") / ".docker" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(installed("docker-compose"))
    with small_disk(sshd, sshd.home("op") / ".local/state/moorage/bin", "noexec,size=64m"):
        await whole_life(SshDesk(sshd))


async def refused_start(desk: SshDesk) -> HostRefusedError:
    began = time.monotonic()
    with pytest.raises(HostRefusedError) as caught:
        await desk.transport().start(order(ssh_app(desk.sshd)))
    assert time.monotonic() - began < _WITHIN_SECONDS
    return caught.value
