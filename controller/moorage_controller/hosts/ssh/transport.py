"""The way to a host without an agent: plain SSH."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar
from uuid import UUID

import structlog
from moorage_common.app_identity import AppIdentity
from moorage_common.app_orders import down_order, up_order
from moorage_common.engine_http import EngineProblemError
from moorage_common.journal_types import Order as JournalOrder
from moorage_common.journal_types import Record, Refused, State
from moorage_common.logs import LogLine, LogsWanted
from moorage_common.states import OperationKind
from moorage_common.untrusted import LIMITS

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts import cleaning
from moorage_controller.hosts.ssh import compose as composes
from moorage_controller.hosts.ssh import inspection
from moorage_controller.hosts.ssh import survey as surveys
from moorage_controller.hosts.ssh import watch as watches
from moorage_controller.hosts.ssh.compose import HostCompose
from moorage_controller.hosts.ssh.identities import check_path
from moorage_controller.hosts.ssh.link import Link, refusal
from moorage_controller.hosts.ssh.pool import SshHost, contact
from moorage_controller.hosts.ssh.site import Site
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    EndKind,
    HostApp,
    HostInfo,
    HostProject,
    HostRefusedError,
    Order,
    Output,
    WatchItem,
)

T = TypeVar("T")

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 10.0
_PROBE_SECONDS = 3.0
"""A hung Engine must not keep the caller's own limit from hearing of it."""
_ENDS = {State.EXITED: EndKind.EXITED, State.LOST: EndKind.LOST, State.BURIED: EndKind.BURIED}


class SshTransport:
    """One host behind the common interface, over the pool's connection to it."""

    name = "ssh"

    def __init__(self, host: SshHost) -> None:
        self._host = host

    async def connect(self) -> None:
        """Log in, where nobody is logged in yet, and see that the host answers. Raises HostUnreachableError."""
        await self._ask(lambda site: site.link.answers())

    async def info(self) -> HostInfo:
        """Ask the host's facts now. Raises HostUnreachableError."""
        await asyncio.to_thread(composes.pinned)
        return await self._ask(_host_info)

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        operation_id = str(order.operation_id)
        check_path(order.app.cd_path)
        async with contact(self._host) as site:
            link = site.link
            if link.survey.state_problem:
                raise refusal(link.survey.state_problem)
            if await site.journal.read(operation_id) is not None:
                return
            compose = await site.provide_compose()
            if order.kind is OperationKind.DOWN:
                identity = await site.identities.for_stop(link, order.app)
            else:
                identity = await site.identities.ask(link, compose, order.app)
            try:
                made, names = await self._order(link, compose, order, identity)

                async def guard() -> Refused | None:
                    taken = identity.refusal(names, (await link.engine.containers()).values())
                    if taken is not None or order.kind is OperationKind.DOWN or link.sessions.limit == 1:
                        # The only session that the server lets us have is the operation's own.
                        return taken
                    return await site.identities.recheck(link, identity)

                attached = await site.journal.launch(made, guard)
            except Refused as error:
                raise HostRefusedError(error.code, str(error)) from None
            except EngineProblemError as error:
                raise HostRefusedError("engine_unreachable", str(error)) from None
            log.info("operation_launched", operation_id=operation_id, kind=order.kind.value, attached=attached)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end."""
        async with contact(self._host) as site:
            while True:
                look = await site.journal.look(str(operation_id), after)
                if look.word == "unknown":
                    raise HostRefusedError(
                        "operation_unknown", "This host's journal has never heard of this operation."
                    )
                if look.data:
                    yield Output(after, look.data)
                    after += len(look.data)
                elif look.word == "running":
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    yield await self._end(site, str(operation_id))
                    return

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or bury it."""
        async with contact(self._host) as site:
            record = await site.journal.read(str(operation_id))
            if record is not None and record.state is State.RUNNING and record.spec.get("kind") == OperationKind.DOWN:
                raise HostRefusedError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
            return CancelOutcome(await site.journal.cancel(str(operation_id), by or "somebody"))

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change."""
        async with contact(self._host) as site:
            await asyncio.to_thread(composes.pinned)
            watched = _Watched(site, apps)
            async with aclosing(watches.Watch(site.link, watched).items()) as items:
                async for item in items:
                    # Each change is work for the database; what comes meanwhile is in the next look.
                    await site.link.sessions.pace.take(LIMITS.change_cost)
                    yield item

    async def look(self, app: HostApp) -> AppObservation:
        """Look at an app now. Raises HostUnreachableError, HostRefusedError."""
        return await self._ask(lambda site: inspection.look(site, app))

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects there are. Raises HostUnreachableError, HostRefusedError."""
        return await self._ask(inspection.projects)

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of what an app's containers write."""
        async with self._host.site() as site, aclosing(inspection.logs(site, app, wanted)) as batches:
            async for batch in batches:
                yield batch

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Raise HostRefusedError: there is no agent on this way that could keep it."""
        del app, deadline
        raise HostRefusedError("no_dead_man", "Over SSH nobody on the host stops an app when no controller does.")

    async def _ask(self, question: Callable[[Site], Awaitable[T]]) -> T:
        """Ask what may be asked twice: a connection may have died without anybody noticing."""
        for last in (False, True):
            async with self._host.site() as site:
                try:
                    return await question(site)
                except ContactLostError as error:
                    if last or site.link.alive:
                        raise HostUnreachableError(str(error), error.code) from None
        raise AssertionError("the last attempt returns or raises")

    async def _order(
        self, link: Link, compose: HostCompose, order: Order, identity: AppIdentity
    ) -> tuple[JournalOrder, set[str]]:
        operation_id, environment = str(order.operation_id), link.survey.environment
        if order.kind is OperationKind.DOWN:
            containers = (await link.engine.containers()).values()
            sweep = _sweep(link, identity)
            return down_order(operation_id, identity, containers, compose.argv, sweep, environment)
        if identity.forbids_start:
            raise HostRefusedError(identity.problem_code, identity.problem)
        before = []
        if compose.upload:
            before.append(["printf", "%s %s %s\\n", "Compose", compose.version, compose.upload])
        return up_order(operation_id, order.kind, identity, compose.argv, environment, before)

    async def _end(self, site: Site, operation_id: str) -> End:
        record = await site.journal.read(operation_id)
        if record is None or record.state is State.RUNNING:
            raise ContactLostError("The host's journal changed while it was read.")
        return cleaning.end(
            End(
                kind=_ENDS[record.state],
                exit_code=record.exit_code or 0,
                length=record.length,
                cancelled_by=record.cancelled_by,
                code=record.code,
                reason=record.reason,
                observed=await self._observed(site.link, record),
            )
        )

    async def _observed(self, link: Link, record: Record) -> AppObservation | None:
        try:
            identity = AppIdentity.from_spec(record.spec)
        except (LookupError, TypeError, ValueError, AttributeError):
            identity = None  # somebody else wrote it
        if identity is None:
            return None
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await watches.look(link, identity)
        except (EngineProblemError, TimeoutError):
            return None


async def _host_info(site: Site) -> HostInfo:
    if site.compose is None and composes.why_own(site.link.survey, await asyncio.to_thread(composes.pinned)):
        # Nothing is uploaded for it, and without one nothing can be started there.
        with suppress(HostRefusedError):
            await site.provide_compose()
    facts, problem = None, site.compose_problem
    if not problem:
        try:
            facts = await site.link.engine.facts(seconds=_PROBE_SECONDS)
        except EngineProblemError as error:
            problem = str(error)
    return watches.host_info(site.link, site.compose, facts, problem)


class _Watched(watches.Apps):
    def __init__(self, site: Site, apps: Sequence[HostApp]) -> None:
        self._site = site
        self._apps = apps

    async def identities(self) -> Sequence[AppIdentity]:
        try:
            self.compose = await self._site.provide_compose()
        except HostRefusedError as error:
            # Nothing can be started or stopped there: the server says why.
            raise EngineProblemError(error.sentence) from None
        return await self._site.identities.current(self._site.link, self.compose, self._apps)


def _sweep(link: Link, identity: AppIdentity) -> list[str]:
    """Return the argv of the last step of a stop."""
    words = ["/bin/sh", "-c", surveys.script("sweep.sh"), "moorage-sweep", identity.real_directory]
    for project in (identity.project, identity.last_project):
        words += [project.name, project.directory] if project is not None else ["", ""]
    return [*words, *link.survey.docker]
