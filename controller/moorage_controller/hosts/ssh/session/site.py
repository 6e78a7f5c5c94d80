"""One connection with the host's journal, its Compose, and the identities of its apps."""

import asyncio
import time

import structlog
from moorage_common.docker.logs import Budget
from moorage_common.journal.unrecorded import Unrecorded

from moorage_controller.hosts.ssh import compose as composes
from moorage_controller.hosts.ssh.compose import HostCompose
from moorage_controller.hosts.ssh.identities import Identities
from moorage_controller.hosts.ssh.journal import Journal
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError

log = structlog.get_logger(__name__)

_REFUSAL_KEPT_SECONDS = 30.0
_LOGS = 64
_LOGS_BY_SESSIONS = 2
_KEPT_SESSIONS = 3
"""Sessions reserved for events, observations and operations, if each stream to the Engine takes one of the few
sessions that the server allows.
"""


class Site:
    """A host over one connection. `users` is its reference count; the last user closes it."""

    def __init__(self, link: HostSession, identities: Identities, unrecorded: Unrecorded) -> None:
        self.link = link
        self.unrecorded = unrecorded
        """The stops that run without a journal, shared by all connections to the host."""
        self.identities = identities
        self.journal = Journal(link)
        self.users = 0
        self.logs = Budget(_LOGS)
        self.compose: HostCompose | None = None
        """The Compose for operations on this host; None until first needed."""
        self._refusal: HostRefusedError | None = None
        self._refused_at = 0.0
        self._providing = asyncio.Lock()

    @property
    def compose_problem(self) -> str:
        """Why there is no Compose; empty if there is one, or if none was needed yet."""
        return self._refusal.sentence if self._refusal is not None and self.compose is None else ""

    def count_log_streams(self) -> None:
        """Set the limit of concurrent logs over this connection."""
        self.logs.limit = _LOGS
        if self.link.engine.streams == 1:
            self.logs.limit = min(_LOGS_BY_SESSIONS, max(self.link.sessions.limit - _KEPT_SESSIONS, 0))

    async def provide_compose(self) -> HostCompose:
        """Return the host's Compose; upload it first if it is missing. Raises ContactLostError, HostRefusedError.

        `upload` is set only in the result of the call that uploaded it.
        """
        async with self._providing:
            if self.compose is not None:
                return self.compose
            if self._refusal is not None and time.monotonic() - self._refused_at < _REFUSAL_KEPT_SECONDS:
                raise HostRefusedError(self._refusal.code, self._refusal.sentence)
            try:
                provided = await composes.provide(self.link)
            except HostRefusedError as error:
                self._refusal, self._refused_at = error, time.monotonic()
                raise
            self.compose = HostCompose(provided.argv, provided.version)
            return provided

    async def clean(self) -> None:
        """Remove old operations from the host; failures are only logged."""
        try:
            removed = await self.journal.clean()
        except (ContactLostError, HostRefusedError) as error:
            log.warning("journal_not_cleaned", error=str(error))
        else:
            log.info("journal_cleaned", removed=len(removed))
