"""One SSH connection per server: opened on demand, shared, closed when idle, replaced without interruption."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog
from moorage_common.clock import jittered
from moorage_common.journal.unrecorded import Unrecorded

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.ssh.identities import Identities
from moorage_controller.hosts.ssh.session.connection import AccessOf, PinHostKey, SshTarget, log_in
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.shell import LOGIN_SHELL_SECONDS
from moorage_controller.hosts.ssh.session.site import Site
from moorage_controller.hosts.transport import ContactLostError
from moorage_controller.signals import DurationSample, Signal

log = structlog.get_logger(__name__)

_MAX_CONCURRENT_CONNECTS = 8
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 300.0
_CLEAN_EVERY_SECONDS = 24 * 3600.0
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 15.0


class SshHost:
    """The shared connection to one server. Created by SshPool."""

    def __init__(
        self,
        target: SshTarget,
        access_of: AccessOf,
        pin: PinHostKey,
        turns: asyncio.Semaphore,
        idle: float,
        login_shell_seconds: float,
        tried: Signal[DurationSample],
    ) -> None:
        self.target = target
        self._tried = tried
        self._access_of = access_of
        self._pin = pin
        self._pinned = target.host_key
        self._turns = turns
        self._idle = idle
        self._login_shell_seconds = login_shell_seconds
        self._site: Site | None = None
        self._opening: asyncio.Task[Site] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._identities = Identities()
        self._unrecorded = Unrecorded()
        self._cleaned = -_CLEAN_EVERY_SECONDS
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._failure: HostUnreachableError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def serves(self, target: SshTarget) -> bool:
        """Whether this host matches the target; pinned keys are compared only if both are known."""
        if target.host_key and self._pinned and target.host_key != self._pinned:
            return False
        return replace(target, host_key="") == replace(self.target, host_key="")

    @asynccontextmanager
    async def site(self) -> AsyncIterator[Site]:
        """Lend the connection; open it if there is none. Raises HostUnreachableError."""
        site = await self._get()
        site.users += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if time.monotonic() - self._cleaned > _CLEAN_EVERY_SECONDS:
            self._cleaned = time.monotonic()
            self._keep(site.clean())
        try:
            yield site
        finally:
            site.users -= 1
            if not site.users:
                self._released(site)

    async def retire(self) -> None:
        """Use a new connection from now on; the old one closes after its last user."""
        site, self._site = self._site, None
        if self._timer is not None:
            self._timer.cancel()
        opening, self._opening = self._opening, None
        self._pause, self._not_before, self._failure = _FIRST_PAUSE, 0.0, None
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        if site is not None and not site.users:
            await site.link.close()

    async def close(self) -> None:
        """Close immediately; calls over it end as lost contact, while operations continue on the host."""
        site = self._site
        await self.retire()
        if site is not None:
            await site.link.close()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _get(self) -> Site:
        if self._site is not None and self._site.link.alive:
            if not self._site.link.needs_reprobe:
                return self._site
            outdated, self._site = self._site, None
            if not outdated.users:
                self._close_later(outdated)
        if self._opening is None or self._opening.done():
            if time.monotonic() < self._not_before and self._failure is not None:
                # Frequent calls must not cause frequent login attempts.
                raise HostUnreachableError(self._failure.sentence, self._failure.code)
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            # Shared: the cancellation of one caller must not cancel the connect of the others.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            asking = asyncio.current_task()
            if opening.cancelled() and asking is not None and not asking.cancelling():
                # The login was cancelled, not this caller, so the caller gets an error.
                raise HostUnreachableError("The way to this server has changed just now: ask again.") from None
            raise

    async def _open(self) -> Site:
        begun = time.monotonic()
        try:
            async with self._turns:
                access = await self._access_of(self.target.server_id)
                self._pinned = access.host_key
                connection, self._pinned = await log_in(self.target, access, self._pin, seconds=_CONNECT_SECONDS)
                try:
                    link = await HostSession.open(
                        connection, self.target.username, self.target.journal, self._login_shell_seconds
                    )
                except BaseException:
                    connection.abort()
                    raise
        except HostUnreachableError as error:
            self._tried.emit(DurationSample("ssh_connect", error.code, time.monotonic() - begun))
            log.warning(
                "ssh_connect_failed",
                server_id=str(self.target.server_id),
                place=self.target.place,
                code=error.code,
                error=error.sentence,
            )
            self._failure = error
            self._not_before = time.monotonic() + jittered(self._pause)
            self._pause = min(self._pause * 2, _LAST_PAUSE)
            raise
        self._tried.emit(DurationSample("ssh_connect", "ok", time.monotonic() - begun))
        self._pause, self._failure, self._site = _FIRST_PAUSE, None, Site(link, self._identities, self._unrecorded)
        self._released(self._site)  # its callers may have been cancelled
        log.info("ssh_connected", server_id=str(self.target.server_id), place=self.target.place)
        return self._site

    def _released(self, site: Site) -> None:
        if site is not self._site:
            self._close_later(site)
        else:
            self._timer = asyncio.get_running_loop().call_later(self._idle, self._idled, site)

    def _idled(self, site: Site) -> None:
        if not site.users:
            if self._site is site:
                self._site = None
            self._close_later(site)

    def _close_later(self, site: Site) -> None:
        self._keep(site.link.close())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class SshPool:
    """The SSH hosts by server."""

    def __init__(
        self,
        access_of: AccessOf,
        pin_host_key: PinHostKey,
        *,
        connects_at_once: int = _MAX_CONCURRENT_CONNECTS,
        idle_seconds: float = _IDLE_SECONDS,
        login_shell_seconds: float = LOGIN_SHELL_SECONDS,
    ) -> None:
        self._access_of = access_of
        self._pin = pin_host_key
        self._turns = asyncio.Semaphore(connects_at_once)
        self._idle = idle_seconds
        self._login_shell_seconds = login_shell_seconds
        self.tried: Signal[DurationSample] = Signal()
        """Emitted after each connect: `ok`, or the error's code."""
        self._hosts: dict[UUID, SshHost] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def host(self, target: SshTarget) -> SshHost:
        """Return the host for a server; a changed address, user, credential or accepted host key creates a new one.

        The old one interrupts nothing: it closes after its last user.
        """
        known = self._hosts.get(target.server_id)
        if known is not None:
            if known.serves(target):
                return known
            self._retire(known)
        made = SshHost(
            target, self._access_of, self._pin, self._turns, self._idle, self._login_shell_seconds, self.tried
        )
        self._hosts[target.server_id] = made
        return made

    async def close(self) -> None:
        """Close all connections; operations continue on their hosts."""
        hosts, self._hosts = list(self._hosts.values()), {}
        await asyncio.gather(*(host.close() for host in hosts), *self._retiring, return_exceptions=True)

    def _retire(self, host: SshHost) -> None:
        task = asyncio.create_task(host.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


@asynccontextmanager
async def contact(host: SshHost) -> AsyncIterator[Site]:
    """Lend a host's connection for an operation that may already have been sent.

    An unreachable host becomes ContactLostError.
    """
    try:
        async with host.site() as site:
            yield site
    except HostUnreachableError as error:
        raise ContactLostError(error.sentence, error.code) from None
