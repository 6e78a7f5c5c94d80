"""SSH login: authentication, host keys, and the sentences for failures."""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import asyncssh
import pytest
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.credentials import SshCredentials, fingerprint
from moorage_controller.hosts.ssh.session.connection import SshTarget
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.signals import DurationSample
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from transport_rigs import SshDesk

StartSshd = Callable[..., PrivateSshd]


async def refusal(transport: SshTransport) -> HostUnreachableError:
    with pytest.raises(HostUnreachableError) as caught:
        await transport.connect()
    assert caught.value.sentence.endswith(".")
    return caught.value


async def test_password_login_succeeds(desk: SshDesk) -> None:
    desk.credentials = SshCredentials(password="pass'word $(x) é")  # noqa: S106 - the lab's
    assert (await desk.transport("secret").info()).engine_reachable


async def test_key_with_passphrase_login_succeeds(desk: SshDesk) -> None:
    key = asyncssh.import_private_key(desk.sshd.key.read_text())
    sealed = key.export_private_key("openssh", passphrase="two words").decode()  # noqa: S106 - the lab's
    desk.credentials = SshCredentials(private_key=sealed, passphrase="two words")  # noqa: S106 - the lab's
    await desk.transport().connect()
    desk.credentials = SshCredentials(private_key=sealed, passphrase="wrong")  # noqa: S106 - the lab's
    error = await refusal(desk.transport())
    assert error.code == "ssh_key_unreadable"
    assert "two words" not in str(error)


async def test_wrong_key_or_password_is_reported_without_secrets(desk: SshDesk) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    desk.credentials = SshCredentials(private_key=stranger, password="hunter2")  # noqa: S106 - the lab's
    error = await refusal(desk.transport("secret"))
    assert error.code == "ssh_login_refused"
    assert "secret" in error.sentence
    assert "hunter2" not in repr(error)
    desk.credentials = SshCredentials()
    assert (await refusal(desk.transport())).code == "no_credentials"


async def test_host_key_is_pinned_at_first_login_and_change_is_refused(
    start_sshd: StartSshd,
) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    server = uuid4()

    def transport() -> SshTransport:
        return SshTransport(desk.pool.host(desk.target(server_id=server)))

    await transport().connect()
    first = desk.pinned[server]
    assert first == sshd.host_key
    sshd.stop()
    sshd.make_host_key()
    sshd.start()
    for _ in range(2):
        error = await refusal(transport())
        assert error.code == "host_key_changed"
        assert fingerprint(sshd.host_key) in error.sentence
        assert fingerprint(first) in error.sentence
    assert desk.pinned[server] == first
    # The effect of an admin's acceptance:
    desk.pinned[server] = sshd.host_key
    await transport().connect()
    await desk.pool.close()


async def test_host_with_several_keys_must_prove_the_pinned_one(
    start_sshd: StartSshd,
) -> None:
    sshd = start_sshd()
    desk = SshDesk(sshd)
    server = uuid4()
    await SshTransport(desk.pool.host(desk.target(server_id=server))).connect()
    sshd.stop()
    extra = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    extra.write_private_key(sshd.folder / "host" / "ecdsa")
    (sshd.folder / "host" / "ecdsa").chmod(0o600)
    sshd.options += [f"HostKey {sshd.folder}/host/ecdsa", "HostKeyAlgorithms ecdsa-sha2-nistp256,ssh-ed25519"]
    sshd.start()
    pinned = desk.pinned[server]
    assert (await SshTransport(desk.pool.host(desk.target(server_id=server))).info()).engine_reachable
    assert desk.pinned[server] == pinned == sshd.host_key
    await desk.pool.close()


async def test_concurrent_first_logins_pin_one_key(desk: SshDesk) -> None:
    """Another controller was first, and saw another key."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()

    async def pin(*_: object) -> str:
        return other

    pool = SshPool(desk._access_of, pin)
    assert (await refusal(SshTransport(pool.host(desk.target())))).code == "host_key_changed"
    await pool.close()


async def test_silent_port_times_out_within_seconds(desk: SshDesk) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        error = await refusal(desk.transport(port=silent.getsockname()[1]))
    assert "did not answer within 10 seconds" in error.sentence
    assert time.monotonic() - began < 12


async def test_unresolvable_address_is_reported(desk: SshDesk) -> None:
    target = replace(desk.target(), address="no-such-host.invalid")
    assert "no-such-host.invalid" in (await refusal(SshTransport(desk.pool.host(target)))).sentence


async def test_shared_connection_serves_all_and_closes_when_idle(desk: SshDesk) -> None:
    pool = SshPool(desk._access_of, desk._pin, idle_seconds=0.2)
    tried: list[DurationSample] = []
    pool.tried.connect(tried.append)
    target = desk.target()
    before = _logins(desk.sshd)
    transports = [SshTransport(pool.host(target)) for _ in range(5)]
    await asyncio.gather(*(each.info() for each in transports for _ in range(4)))
    assert _logins(desk.sshd) == before + 1
    await asyncio.to_thread(eventually, lambda: _open_connections(desk.sshd) == 0, what="the idle connection closed")
    await transports[0].info()
    assert _logins(desk.sshd) == before + 2
    assert [each.result for each in tried] == ["ok", "ok"]
    await pool.close()


async def test_concurrent_logins_to_many_servers_are_limited(start_sshd: StartSshd) -> None:
    """MaxStartups 3 drops a fourth concurrent login; the pool never has more than two in progress."""
    sshd = start_sshd("MaxStartups 3:100:3")
    desk = SshDesk(sshd)
    pool = SshPool(desk._access_of, desk._pin, connects_at_once=2)
    hosts = [pool.host(desk.target(server_id=uuid4())) for _ in range(12)]
    infos = await asyncio.gather(*(SshTransport(host).info() for host in hosts))
    assert all(info.engine_reachable for info in infos)
    await pool.close()


async def test_repeated_requests_do_not_repeat_failed_login(start_sshd: StartSshd) -> None:
    sshd = start_sshd(users=(LabUser("op"),))
    desk = SshDesk(sshd)
    desk.credentials = SshCredentials(password="wrong")  # noqa: S106 - the lab's
    transport = desk.transport()
    tried: list[DurationSample] = []
    desk.pool.tried.connect(tried.append)
    for _ in range(20):
        assert (await refusal(transport)).code == "ssh_login_refused"
    assert {each.result for each in tried} == {"ssh_login_refused"}
    assert len(tried) < 5
    assert sshd.process.log.read_text().count("Failed password") < 5
    # Corrected credentials take effect immediately.
    desk.credentials = SshCredentials(private_key=sshd.key.read_text())
    await desk.transport().connect()
    await desk.pool.close()


def _logins(sshd: PrivateSshd) -> int:
    return sshd.process.log.read_text().count("Accepted publickey")


def _open_connections(sshd: PrivateSshd) -> int:
    return sshd.connections


async def test_key_pinned_during_login_interrupts_no_connection(desk: SshDesk) -> None:
    pinned, go_on = asyncio.Event(), asyncio.Event()

    async def pin(target: SshTarget, host_key: str) -> str:
        desk.pinned[target.server_id] = host_key
        pinned.set()
        await go_on.wait()
        return host_key

    pool = SshPool(desk._access_of, pin)
    target = desk.target()
    first = asyncio.create_task(SshTransport(pool.host(target)).connect())
    await pinned.wait()
    # Readers of the server see the key now; the login in progress doesn't know it yet.
    other = pool.host(replace(target, host_key=desk.pinned[target.server_id]))
    assert other is pool.host(target)
    second = asyncio.create_task(SshTransport(other).connect())
    go_on.set()
    await asyncio.wait_for(asyncio.gather(first, second), 20)
    await pool.close()


async def test_waiter_of_retired_host_gets_error(desk: SshDesk) -> None:
    pinned = asyncio.Event()

    async def pin(target: SshTarget, host_key: str) -> str:
        del target, host_key
        pinned.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    pool = SshPool(desk._access_of, pin)
    host = pool.host(desk.target())
    waiting = asyncio.create_task(SshTransport(host).connect())
    await pinned.wait()
    await host.retire()
    # A silently ended follower or watcher would go unnoticed.
    with pytest.raises(HostUnreachableError, match="ask again"):
        await asyncio.wait_for(waiting, 20)
    await pool.close()
