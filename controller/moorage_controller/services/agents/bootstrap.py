"""Installation, upgrade and removal of an agent, in steps that can each be repeated.

A controller that dies leaves the operation in flight; the next one repeats all steps from the first, and each step
checks the existing state first. The server's row changes only once the new agent has answered.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from moorage_common.clock import Clock

from moorage_controller.errors import HostUnreachableError, InvalidError
from moorage_controller.hosts import bundle as bundles
from moorage_controller.hosts.agent import AgentTransport
from moorage_controller.hosts.bundle import Bundle, NoBundleError
from moorage_controller.hosts.choose import ssh_target
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.ssh.install import Found, Installer
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError
from moorage_controller.services.agents.agents import INSTALL
from moorage_controller.services.agents.enrollment import Enrollments
from moorage_controller.services.runs.transitions import Outcome
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables import output as output_store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.output import Piece
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)

DATA_DIR = "/var/lib/moorage"
_ATTEMPTS = 3
_PAUSE_SECONDS = 2.0
_DIAL_BACK_SECONDS = 40.0
_SNAPSHOT_SECONDS = 40.0
_POLL_SECONDS = 0.3
_GONE = "The server was removed meanwhile."
_NO_AGENT = {
    "api_endpoint": None,
    "agent_name": None,
    "agent_version": None,
    "agent_journal": None,
    "fallback": None,
    "keeps_deadlines": False,
}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Runs operations on agents.

    `bundle_file` is MOORAGE_AGENT_BUNDLE; `base_url` is the controller's own URL, shown to admins of the host.
    """

    database: Database
    enrollments: Enrollments
    pool: SshPool
    channels: AgentChannels
    signals: Signals
    clock: Clock
    bundle_file: Path | None
    base_url: str

    async def run(self, operation: Operation) -> Outcome:
        """Run the operation and return its outcome."""
        async with self.database.write() as connection:
            now = await self.database.now(connection)
            started = {"state": "running", "transport": "ssh", "started_at": operation.started_at or now}
            await store.change_in_flight(connection, operation.id, started)
            server = None if operation.server_id is None else await server_store.get(connection, operation.server_id)
        if server is None:
            return Outcome("failed", ran=False, error_code="server_not_found", error=_GONE)
        work = (_Installation if operation.kind == INSTALL else _Removal)(self, operation, server)
        outcome = await work.run()
        self.signals.server_changed.emit(server.id)
        return outcome

    async def bundle(self) -> Bundle:
        """Return the agent bundle to install. Raises HostRefusedError."""
        try:
            return await asyncio.to_thread(bundles.load, self.bundle_file)
        except NoBundleError as error:
            raise HostRefusedError("no_agent_bundle", str(error)) from None


class _Work(ABC):
    """One operation on one server. Each step writes lines to its output."""

    def __init__(self, parts: Bootstrap, operation: Operation, server: Server) -> None:
        self.parts = parts
        self.operation = operation
        self.server = server
        self.request: dict[str, Any] = json.loads(operation.request or "{}")
        self.step = "connect"
        self.reached = ""

    async def run(self) -> Outcome:
        """Run all steps; if the connection is lost, repeat them from the first, up to three attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            if await self._is_late():
                return await self._failed("deadline_exceeded", "Its time is over: call again.")
            try:
                await self._attempt()
            except (ContactLostError, HostUnreachableError) as error:
                said = error.sentence if isinstance(error, HostUnreachableError) else str(error)
                code = error.code if isinstance(error, HostUnreachableError) else "host_unreachable"
                if attempt == _ATTEMPTS or self.step == "connect":
                    return await self._unreachable(code, said)
                self.reached = self.step
                await self.tell(f"Contact was lost: {said}")
                await self.parts.clock.sleep(_PAUSE_SECONDS)
            except HostRefusedError as error:
                return await self._failed(error.code, error.sentence)
            else:
                return Outcome("succeeded", exit_code=0)
        raise AssertionError("the last attempt returns")

    async def begin(self, step: str, sentence: str) -> None:
        """Begin a step."""
        self.step = step
        await self.tell(f"[{step}] {sentence}")

    async def tell(self, line: str) -> None:
        """Add a line to the operation's output."""
        log.info("agent_step", step=self.step, line=line)
        async with self.parts.database.write() as connection:
            start = await output_store.length(connection, self.operation.id)
            await output_store.append(connection, self.operation.id, Piece(start, f"{line}\n".encode()))
        self.parts.signals.output_kept.emit(self.operation.id)

    async def with_installer(self, work: Callable[[Installer], Awaitable[None]]) -> None:
        """Call `work` with an installer over SSH. Raises HostUnreachableError."""
        await self.begin("connect", f"Log in to {self.server.address} by SSH")
        host = self.parts.pool.host(ssh_target(self.server))
        # A new login: no back-off after an earlier failure, and corrections on the host take effect.
        await host.retire()
        async with host.site() as site:
            await work(Installer(site.link))

    @abstractmethod
    async def _attempt(self) -> None:
        """Run all steps. Raises HostRefusedError, HostUnreachableError, ContactLostError."""

    async def _is_late(self) -> bool:
        async with self.parts.database.read() as connection:
            return await self.parts.database.now(connection) >= self.operation.deadline_at

    async def _unreachable(self, code: str, sentence: str) -> Outcome:
        reached = self.reached or self.step
        again = f" Contact was lost at {reached!r}: once the host is back, call again." if reached != "connect" else ""
        return await self._failed(code, f"{sentence}{again}")

    async def _failed(self, code: str, sentence: str) -> Outcome:
        told = f"It failed at {self.step!r}: {sentence}"
        await self.tell(told)
        return Outcome("failed", exit_code=1, error_code=code, error=told)


class _Installation(_Work):
    async def _attempt(self) -> None:
        bundle = await self.parts.bundle()
        await self.with_installer(lambda installer: self._install(installer, bundle))

    async def _install(self, installer: Installer, bundle: Bundle) -> None:
        port = int(self.request["port"])
        await self.begin("check system", "See what the host is")
        found = await installer.check(port)
        if found.current:
            await self.tell(f"There is {found.current}; {bundle.build} is to run.")
        try:
            await self._put(installer, bundle)
            name = await self._enrol(installer, bundle, found, port)
            await self.begin("start", "Start the service")
            await installer.switch(bundle.build)
            await self._dial_back(installer, bundle.build, name, port)
        except HostRefusedError as error:
            raise HostRefusedError(error.code, f"{error.sentence} {await self._undo(installer)}") from None
        # The agent has answered: no rollback from here on.
        await installer.done(bundle.build)
        await self._make_member(name, bundle.build, port)
        await self._first_snapshot(bundle.build)

    async def _put(self, installer: Installer, bundle: Bundle) -> None:
        """Upload the bundle to the host, unless it is there, and unpack it."""
        path = ""
        try:
            if not await installer.has(bundle.build):
                size = len(bundle.content)
                await self.begin("upload", f"Send {size >> 20} MiB")
                path = await installer.upload(bundle, _Percents(self.tell, size).arrived)
            await self.begin("install", f"Unpack {bundle.build}, and see that it runs here")
            await installer.unpack(path, bundle.build)
        finally:
            if path:
                await installer.clear(path)

    async def _enrol(self, installer: Installer, bundle: Bundle, found: Found, port: int) -> str:
        """Enroll the host and return its agent name; a valid enrollment is kept."""
        await self.begin("enrol", "See who the host is")
        enrollments, listen = self.parts.enrollments, f"0.0.0.0:{port}"
        status = await installer.status(bundle.build)
        name = str(status.get("agentName", ""))
        in_order = status.get("enrolled") and not status.get("problem") and status.get("listen") == listen
        trusted = in_order and status.get("caFingerprint") == enrollments.ca_fingerprint
        if trusted and await enrollments.knows(self.server.id, name):
            await self.tell(f"It is enrolled as {name} already.")
            return name
        try:
            member = await enrollments.issue(self.server.id, await installer.request_certificate(bundle.build))
        except InvalidError as error:
            raise HostRefusedError("agent_broken", f"The agent asks for no certificate: {error.sentence}") from None
        options = ["--controller", self.parts.base_url, "--listen", listen, "--advertise", self._endpoint(port)]
        roots = self.request["roots"] or ([] if found.has_policy else await self._default_roots())
        for root in roots:
            options += ["--allow-root", root]
        answer = {"certificate": member.certificate, "ca": member.ca, "agentName": member.agent_name}
        await installer.accept_certificate(bundle.build, answer, options)
        await self.tell(f"It is {member.agent_name} now; its key was made there and stays there.")
        if roots:
            await self.tell(
                f"Apps may run below {', '.join(roots)}: an admin of the host can change that in its policy."
            )
        return member.agent_name

    async def _default_roots(self) -> list[str]:
        """Return the parent folders of the server's apps, or /srv if there are none."""
        async with self.parts.database.read() as connection:
            apps = await app_store.on_server(connection, self.server.id)
        above = {path if str(path.parent) == "/" else path.parent for path in (Path(app.cd_path) for app in apps)}
        return sorted(str(path) for path in above) or ["/srv"]

    async def _dial_back(self, installer: Installer, build: str, name: str, port: int) -> None:
        """Wait until the new build answers under its name. Raises HostRefusedError."""
        endpoint = self._endpoint(port)
        await self.begin("dial back", f"Call the agent at {endpoint}")
        transport = AgentTransport(self.parts.channels.get(endpoint, name), endpoint)
        limit = self.parts.clock.monotonic() + _DIAL_BACK_SECONDS
        while True:
            try:
                info = await transport.info()
                if info.agent_version == build:
                    return
                said = f"The agent at {endpoint} is {info.agent_version}, and not {build}."
            except HostUnreachableError as error:
                said = error.sentence
            if self.parts.clock.monotonic() > limit:
                raise HostRefusedError(
                    "no_dial_back", f"{said} The service says: {await installer.failure_reason()}".strip()
                )
            await self.parts.clock.sleep(_POLL_SECONDS)

    async def _undo(self, installer: Installer) -> str:
        """Roll the host back, and return a sentence on the result."""
        try:
            back = await installer.roll_back()
        except (HostRefusedError, ContactLostError) as error:
            return f"It could not be put back as it was: {error}"
        word, _, before = back.partition(" ")
        return {
            "removed": "The host is as it was before.",
            "back": f"{before} runs again.",
            "kept": "What was there is left as it was.",
        }.get(word, "")

    async def _make_member(self, name: str, build: str, port: int) -> None:
        async with self.parts.database.write() as connection:
            now = await self.parts.database.now(connection)
            values = {
                "api_endpoint": self._endpoint(port),
                "agent_name": name,
                "agent_version": build,
                "agent_journal": DATA_DIR,
                "updated_at": now,
            }
            await server_store.change(connection, self.server.id, values)
        self.parts.signals.server_changed.emit(self.server.id)

    async def _first_snapshot(self, build: str) -> None:
        await self.begin("first snapshot", "Wait until the server is seen over its agent")
        limit = self.parts.clock.monotonic() + _SNAPSHOT_SECONDS
        while True:
            async with self.parts.database.read() as connection:
                server = await server_store.get(connection, self.server.id)
            if server is None:
                raise HostRefusedError("server_not_found", _GONE)
            if (server.status, server.agent_version, server.fallback) == ("online", build, None):
                await self.tell(f"{server.name} is online over its agent {build}.")
                return
            if self.parts.clock.monotonic() > limit:
                detail = server.fallback or server.status_detail or "nothing was seen yet"
                raise HostRefusedError("no_snapshot", f"The agent is installed, but the server isn't online: {detail}")
            await self.parts.clock.sleep(_POLL_SECONDS)

    def _endpoint(self, port: int) -> str:
        address = self.server.address
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _Removal(_Work):
    async def _attempt(self) -> None:
        try:
            await self.with_installer(self._remove)
        except (HostUnreachableError, ContactLostError) as error:
            if not self.request["force"]:
                raise
            await self.tell(f"The host can't be reached ({error}): its agent stays there, and opens nothing any more.")
        await self.begin("revoke", "Forget the agent's name: what it shows counts no more")
        async with self.parts.database.write() as connection:
            now = await self.parts.database.now(connection)
            await server_store.change(connection, self.server.id, {**_NO_AGENT, "updated_at": now})

    async def _remove(self, installer: Installer) -> None:
        await self.begin("remove", "Stop the service, and remove what its installation made")
        await installer.remove()


class _Percents:
    """Reports the progress of an upload at every quarter."""

    def __init__(self, tell: Callable[[str], Awaitable[None]], size: int) -> None:
        self._tell = tell
        self._size = size
        self._told = 0

    async def arrived(self, count: int) -> None:
        """Report that `count` bytes in total have arrived."""
        quarter = 4 * count // self._size
        if quarter > self._told:
            self._told = quarter
            await self._tell(f"{quarter * 25} % are there.")
