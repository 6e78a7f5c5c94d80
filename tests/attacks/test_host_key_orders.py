"""Logins in any order: credentials go to the holder of the pinned host key only, and only admins replace a pin."""

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncssh
import pytest
from factories import ENCRYPTION_KEY, make_settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from moorage_common.clock import SystemClock
from moorage_controller.auth.roles import Actor
from moorage_controller.database import open_database
from moorage_controller.errors import ConflictError, HostUnreachableError
from moorage_controller.hosts.choose import TransportFactory, ssh_target
from moorage_controller.hosts.credentials import fingerprint
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.ssh.session.connection import key_text
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.services.fleet.host_keys import HostKeys, PinnedKeys
from moorage_controller.signals import Signals
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.tables import servers as store
from moorage_controller.store.tables.servers import Server
from moorage_lab.hosts.network import free_port
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually

T = TypeVar("T")
ADMIN = Actor(None, "admin")
KEYS = [asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ecdsa-sha2-nistp256")]
PASSWORD = "the right one"  # noqa: S105 - the lab's


@pytest.fixture
def sshd(engine: PrivateEngine, short_folder: Path, tmp_path: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`, who has a password."""
    with PrivateSshd(short_folder / tmp_path.name, engine, [LabUser("op", password=PASSWORD)]) as running:
        yield running


def test_corrected_password_after_failed_login_reaches_no_other_key(sshd: PrivateSshd, tmp_path: Path) -> None:
    with ControllerProcess(tmp_path / "controller") as controller:
        api = controller.admin()
        body = {"name": "plain", "address": "127.0.0.1", "sshPort": sshd.port, "sshUser": "op", "sshPassword": "wrong"}
        path = f"/api/servers/{api.post('/api/servers', body).expect(201)['id']}"
        pinned = fingerprint(sshd.host_key)
        eventually(lambda: api.get(path).expect(200)["hostKeyFingerprint"] == pinned, what="a key taken at first sight")
        eventually(lambda: "Failed password" in sshd.process.log.read_text(), what="a failed login")
        sshd.stop()
        sshd.make_host_key()
        sshd.start()
        api.post(f"{path}/test").expect(200)
        before = _tried(sshd)
        api.put(path, {"sshPassword": PASSWORD}).expect(200)
        api.post(f"{path}/test").expect(200)
        shown = api.get(path).expect(200)
        assert "has changed" in shown["statusDetail"]
        assert shown["hostKeyFingerprint"] == pinned
        assert _tried(sshd) == before, "the password went to another key's owner"
        api.post(f"{path}/host-key", {"fingerprint": fingerprint(sshd.host_key)}).expect(200)
        eventually(lambda: "Accepted password" in sshd.process.log.read_text(), what="a login after the admin's word")


def _tried(sshd: PrivateSshd) -> int:
    return sshd.process.log.read_text().count(" password for op")


class Door(asyncssh.SSHServer):
    """Records each received password, with the host key of the connection."""

    def __init__(self, key: str, had: list[tuple[str, str]]) -> None:
        self._key = key
        self._had = had

    def begin_auth(self, username: str) -> bool:
        """Ask for a password."""
        del username
        return True

    def password_auth_supported(self) -> bool:
        """Offer passwords."""
        return True

    def validate_password(self, username: str, password: str) -> bool:
        """Let every other password in."""
        del username
        self._had.append((self._key, password))
        return password.endswith("0")


class Process:
    """The parts of a controller process that handle hosts."""

    def __init__(self, folder: Path) -> None:
        made = make_settings(folder)
        self.database = open_database(made, SystemClock())
        self.credentials = Credentials(self.database, Keyring([ENCRYPTION_KEY]))
        self.pool = SshPool(self.credentials.access_of, PinnedKeys(self.database).pin)
        self.hosts = TransportFactory(AgentChannels(_no_identity), self.pool)
        self.keys = HostKeys(self.database, self.hosts, Signals())

    async def close(self) -> None:
        """End it."""
        await self.pool.close()
        await self.database.close()

    async def log_in(self, server: Server) -> None:
        """Log in immediately, without the pause after a failed login."""
        host = self.pool.host(ssh_target(server))
        host._not_before = 0.0
        with suppress(HostUnreachableError, asyncssh.Error):
            async with host.site():
                pass


def _no_identity() -> Any:  # noqa: ANN401 - never called: no host has an agent here
    raise AssertionError("no agent is asked here")


class Orders(RuleBasedStateMachine):
    """Two controllers on one database, one server, two addresses; the host behind each address changes."""

    folder: Path
    attempts = 0
    passwords = 0
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.had: list[tuple[str, str]] = []
        self.secrets = itertools.count()
        self.listeners: list[asyncssh.SSHAcceptor | None] = [None, None]
        self.ports = [free_port(), free_port()]
        self.owners = [0, 0]
        self.go(self.begin())

    def go(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the walk's own loop."""
        return self.runner.run(work)

    async def begin(self) -> None:
        """Create the database, the server and the host at its address."""
        self.home = self.folder / str(next(self.numbers))
        self.home.mkdir()
        self.processes = [Process(self.home), Process(self.home)]
        database = self.processes[0].database
        await migrate(database)
        async with database.write() as connection:
            now = await database.now(connection)
            await store.add(
                connection,
                Server(
                    id=UUID(int=1),
                    name="host",
                    address="127.0.0.1",
                    ssh_user="op",
                    ssh_port=self.ports[0],
                    api_endpoint=None,
                    status="offline",
                    running_apps_count=0,
                    last_checked=None,
                    status_detail=None,
                    running_containers=0,
                    uptime=None,
                    agent_name=None,
                    agent_version=None,
                    created_at=now,
                    updated_at=now,
                ),
            )
        for place in (0, 1):
            await self.listen(place)
        await self.store_password()
        self.remembered = self.pinned = await self.read()

    async def listen(self, place: int) -> None:
        """Let the owner of a key answer at an address."""
        listener = self.listeners[place]
        if listener is not None:
            listener.close()
            await listener.wait_closed()
        key = KEYS[self.owners[place]]
        self.listeners[place] = await asyncssh.listen(
            "127.0.0.1",
            self.ports[place],
            server_host_keys=[key],
            server_factory=lambda: Door(key_text(key), self.had),
            process_factory=lambda process: process.exit(1),
        )

    async def read(self) -> Server:
        """Return the server as it is stored."""
        database = self.processes[0].database
        async with database.read() as connection:
            found = await store.get(connection, UUID(int=1))
        assert found is not None
        return found

    async def change(self, **values: object) -> None:
        """Store columns of the server."""
        async with self.processes[0].database.write() as connection:
            await store.change(connection, UUID(int=1), values)

    async def store_password(self) -> None:
        """Store a new, unused password."""
        sealed = await self.processes[0].credentials.changed(
            UUID(int=1), None, {"password": f"secret {next(self.secrets)}", "private_key": None, "passphrase": None}
        )
        await self.change(encrypted_credentials=sealed)

    @rule()
    def another_password(self) -> None:
        """Give the server another password; every other one is right."""
        self.go(self.store_password())

    @rule(place=st.integers(0, 1))
    def key_changes(self, place: int) -> None:
        """Put another host behind an address."""
        self.owners[place] = 1 - self.owners[place]
        self.go(self.listen(place))

    @rule(place=st.integers(0, 1))
    def address_changes(self, place: int) -> None:
        """Move the server to an address."""
        self.go(self.change(ssh_port=self.ports[place]))

    @rule(number=st.integers(0, 1))
    def process_restarts(self, number: int) -> None:
        """Restart a controller."""
        self.go(self.processes[number].close())
        self.processes[number] = Process(self.home)

    @rule()
    def server_is_read(self) -> None:
        """Read the server for a login at a later time."""
        self.remembered = self.go(self.read())

    @rule(number=st.integers(0, 1), late=st.booleans())
    def log_in(self, number: int, *, late: bool) -> None:
        """Log in with the current server, or with the one read last."""
        self.go(self.logged_in([number], late=late))

    @rule(late=st.booleans())
    def both_log_in(self, *, late: bool) -> None:
        """Log in from both controllers concurrently."""
        self.go(self.logged_in([0, 1], late=late))

    async def logged_in(self, numbers: list[int], *, late: bool) -> None:
        """Log in, and check which host received the password."""
        before = await self.read()
        self.had.clear()
        type(self).attempts += len(numbers)
        server = self.remembered if late else before
        await asyncio.gather(*(self.processes[number].log_in(server) for number in numbers))
        self.pinned = after = await self.read()
        assert after.host_key == before.host_key or before.host_key is None
        if before.host_key is None and after.host_key is not None:
            assert after.host_key == key_text(KEYS[self.owners[self.ports.index(after.ssh_port)]])
        assert {key for key, _ in self.had} <= {after.host_key}, self.had
        type(self).passwords += len(self.had)

    @rule(owner=st.integers(0, 1))
    def admin_accepts(self, owner: int) -> None:
        """Accept a key as an admin: it takes effect if the host at the address presents it."""
        self.go(self.accepted(key_text(KEYS[owner])))

    async def accepted(self, wanted: str) -> None:
        """Accept a key, and see that it counts where it is shown, and nowhere else."""
        before = await self.read()
        shown = key_text(KEYS[self.owners[self.ports.index(before.ssh_port)]])
        try:
            await self.processes[0].keys.accept(UUID(int=1), fingerprint(wanted), ADMIN)
        except ConflictError:
            assert shown != wanted
        else:
            assert shown == wanted
        self.pinned = after = await self.read()
        assert after.host_key == (wanted if shown == wanted else before.host_key)

    @invariant()
    def nothing_else_pins(self) -> None:
        """Check that the pinned key comes from a login or an admin."""
        assert self.go(self.read()).host_key == self.pinned.host_key

    def teardown(self) -> None:
        """End everything."""
        self.go(self.end())
        self.runner.close()

    async def end(self) -> None:
        """End everything."""
        for listener in self.listeners:
            if listener is not None:
                listener.close()
        for process in self.processes:
            await process.close()


def test_secret_never_reaches_other_key_in_any_login_order(tmp_path: Path) -> None:
    class Here(Orders):
        """The walk, in this test's folder."""

        folder = tmp_path

    run_state_machine_as_test(Here, settings=settings(max_examples=8, stateful_step_count=12, deadline=None))
    assert 0 < Here.passwords <= Here.attempts, "logins came so far that a password went, at most once each"
