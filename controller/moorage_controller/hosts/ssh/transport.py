"""The SSH transport, for hosts without an agent."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar
from uuid import UUID

import structlog
from moorage_common.compose.orders import down_order, paused, up_order
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.engine_http import EngineProblemError
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import OperationKind
from moorage_common.journal.shell import Look
from moorage_common.journal.types import Guard, Record, Refused, State
from moorage_common.journal.types import Order as JournalOrder
from moorage_common.untrusted import LIMITS

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts import cleaning
from moorage_controller.hosts.ssh import compose as composes
from moorage_controller.hosts.ssh import inspection
from moorage_controller.hosts.ssh import survey as surveys
from moorage_controller.hosts.ssh import watch as watches
from moorage_controller.hosts.ssh.compose import HostCompose
from moorage_controller.hosts.ssh.identities import check_path
from moorage_controller.hosts.ssh.session.host_session import HostSession, refusal
from moorage_controller.hosts.ssh.session.pool import SshHost, contact
from moorage_controller.hosts.ssh.session.shell import quote
from moorage_controller.hosts.ssh.session.site import Site
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
_REQUEST_SECONDS = 10.0
_BATCH_BYTES = 64 * 1024
_STOP_SECONDS = 3600.0
"""Time limit of a stop without a journal: each container has its own grace period."""
_PROBE_SECONDS = 3.0
"""Shorter than the callers' own time limits, so that they see a hung Engine reported."""
_ENDS = {State.EXITED: EndKind.EXITED, State.LOST: EndKind.LOST, State.BURIED: EndKind.BURIED}


class SshTransport:
    """HostTransport over the pool's connection to one host."""

    name = "ssh"

    def __init__(self, host: SshHost) -> None:
        self._host = host

    async def connect(self) -> None:
        """Log in unless there is a connection, and check that the host answers. Raises HostUnreachableError."""
        await self._ask(lambda site: site.link.answers())

    async def info(self) -> HostInfo:
        """Fetch the host's facts. Raises HostUnreachableError."""
        await asyncio.to_thread(composes.pinned)
        return await self._ask(_host_info)

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        operation_id = str(order.operation_id)
        check_path(order.app.cd_path)
        async with contact(self._host) as site:
            link, is_stop = site.link, order.kind is OperationKind.DOWN
            if link.survey.state_problem and not is_stop:
                raise refusal(link.survey.state_problem)
            if await _read(site, operation_id) is not None:
                return
            compose = await _compose(site, is_stop=is_stop)
            if is_stop or compose is None:
                identity = await site.identities.for_stop(link, order.app)
            else:
                identity = await site.identities.ask(link, compose, order.app)
            try:
                made, names = await self._order(link, compose, order, identity)

                async def guard() -> Refused | None:
                    containers = (await link.engine.containers()).values()
                    taken = identity.refusal(names, containers)
                    if taken is not None or is_stop:
                        return taken
                    others = identity.other_files(containers)
                    if others is not None or link.sessions.limit == 1:
                        # The server allows only one session, and the operation itself uses it.
                        return others
                    return await site.identities.recheck(link, identity)

                attached = await self._launch(site, made, guard, is_stop=is_stop)
            except Refused as error:
                raise HostRefusedError(error.code, str(error)) from None
            except EngineProblemError as error:
                raise HostRefusedError("engine_unreachable", str(error)) from None
            log.info("operation_launched", operation_id=operation_id, kind=order.kind.value, attached=attached)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end."""
        async with contact(self._host) as site:
            while True:
                look = await _poll_journal(site, str(operation_id), after)
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
            record = await _read(site, str(operation_id))
            if record is not None and record.state is State.RUNNING and record.spec.get("kind") == OperationKind.DOWN:
                raise HostRefusedError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
            return await _cancel(site, str(operation_id), by or "somebody")

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change."""
        async with contact(self._host) as site:
            await asyncio.to_thread(composes.pinned)
            watched = _Watched(site, apps)
            async with aclosing(watches.Watch(site.link, watched).items()) as items:
                async for item in items:
                    # Each change costs database work; later changes are part of the next observation.
                    await site.link.sessions.pace.take(LIMITS.change_cost)
                    yield item

    async def observe(self, app: HostApp) -> AppObservation:
        """Observe an app now. Raises HostUnreachableError, HostRefusedError."""
        return await self._ask(lambda site: inspection.observe(site, app))

    async def projects(self) -> Sequence[HostProject]:
        """List the existing Compose projects. Raises HostUnreachableError, HostRefusedError."""
        return await self._ask(inspection.projects)

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of log lines of an app's containers."""
        async with self._host.site() as site, aclosing(inspection.logs(site, app, wanted)) as batches:
            async for batch in batches:
                yield batch

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Raise HostRefusedError: deadlines need an agent."""
        del app, deadline
        raise HostRefusedError("no_dead_man", "Over SSH nobody on the host stops an app when no controller does.")

    async def _ask(self, question: Callable[[Site], Awaitable[T]]) -> T:
        """Run an idempotent request, with one retry, because the connection may have died unnoticed."""
        for last in (False, True):
            async with self._host.site() as site:
                try:
                    return await question(site)
                except ContactLostError as error:
                    if last or site.link.alive:
                        raise HostUnreachableError(str(error), error.code) from None
        raise AssertionError("the last attempt returns or raises")

    async def _order(
        self, link: HostSession, compose: HostCompose | None, order: Order, identity: AppIdentity
    ) -> tuple[JournalOrder, set[str]]:
        operation_id, environment = str(order.operation_id), link.survey.environment
        if order.kind is OperationKind.DOWN or compose is None:
            containers = (await link.engine.containers()).values()
            sweep = _sweep(link, identity)
            argv = None if compose is None else compose.argv
            return down_order(operation_id, identity, containers, argv, sweep, environment)
        if identity.forbids_start:
            raise HostRefusedError(identity.problem_code, identity.problem)
        before = []
        if held := paused(identity, (await link.engine.containers()).values()):
            before.append([*link.survey.docker, "unpause", *held])
        if compose.upload:
            before.append(["printf", "%s %s %s\\n", "Compose", compose.version, compose.upload])
        return up_order(operation_id, order.kind, identity, compose.argv, environment, before)

    async def _launch(self, site: Site, order: JournalOrder, guard: Guard, *, is_stop: bool) -> bool:
        """Launch through the journal; if it refuses a stop, run the stop without a journal."""
        try:
            return await site.journal.launch(order, guard)
        except HostRefusedError as error:
            if not is_stop:
                raise
            await site.unrecorded.launch(order, guard, site.journal.locks, error.sentence, self._execute)
            return False

    async def _execute(self, argv: Sequence[str], environment: Mapping[str, str], take: Callable[[bytes], None]) -> int:
        """Run a stop without a journal in a session; its output is available only at its end."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        script = f"cd /\n{quote('env', '-i', *variables, *argv)}"
        async with self._host.site() as site:
            ran = await site.link.run_in_session(script, seconds=_STOP_SECONDS, limit=LIMITS.script_config)
        take(ran.output)
        return ran.code

    async def _end(self, site: Site, operation_id: str) -> End:
        record = await _read(site, operation_id)
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

    async def _observed(self, link: HostSession, record: Record) -> AppObservation | None:
        try:
            identity = AppIdentity.from_spec(record.spec)
        except (LookupError, TypeError, ValueError, AttributeError):
            identity = None  # the record was not written by Moorage
        if identity is None:
            return None
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await watches.observe(link, identity)
        except (EngineProblemError, TimeoutError):
            return None


async def _read(site: Site, operation_id: str) -> Record | None:
    """Return the record of a stop without a journal, else that of the journal."""
    return site.unrecorded.read(operation_id) or await site.journal.read(operation_id)


async def _poll_journal(site: Site, operation_id: str, after: int) -> Look:
    known = site.unrecorded.read(operation_id)
    if known is None:
        return await site.journal.poll(operation_id, after)
    word = "running" if known.state is State.RUNNING else "ended"
    return Look(word, site.unrecorded.read_output(operation_id, after, _BATCH_BYTES))


async def _cancel(site: Site, operation_id: str, by: str) -> CancelOutcome:
    """Cancel through the journal.

    If an operation never began and can't be buried on disk, it is buried in this controller's memory.
    """
    ended = site.unrecorded.read(operation_id)
    if ended is not None:
        return CancelOutcome.BURIED if ended.state is State.BURIED else CancelOutcome.ALREADY_ENDED
    try:
        return CancelOutcome(await site.journal.cancel(operation_id, by))
    except HostRefusedError:
        if await site.journal.read(operation_id) is not None:
            raise
        site.unrecorded.tombstone(operation_id, "cancelled", f"Cancelled by {by} before it started.")
        return CancelOutcome.BURIED


async def _compose(site: Site, *, is_stop: bool) -> HostCompose | None:
    """Return the host's Compose; None for a stop without one, which uses only the labels of the containers."""
    try:
        return await site.provide_compose()
    except HostRefusedError as error:
        if not is_stop or error.code == "engine_unreachable":
            raise
        log.warning("stop_without_compose", error=error.sentence)
        return None


async def _host_info(site: Site) -> HostInfo:
    if site.compose is None and composes.why_own(site.link.survey, await asyncio.to_thread(composes.pinned)):
        # This only checks the host's own Compose; without one nothing can be started there.
        with suppress(HostRefusedError):
            await site.provide_compose()
    facts, problem = None, site.compose_problem
    if not problem:
        try:
            facts = await site.link.engine.facts(seconds=_PROBE_SECONDS)
        except EngineProblemError as error:
            problem = str(error)
    return watches.host_info(site.link, site.compose, facts, problem, await site.link.disk_problem())


class _Watched(watches.Apps):
    def __init__(self, site: Site, apps: Sequence[HostApp]) -> None:
        self._site = site
        self._apps = apps

    async def identities(self) -> Sequence[AppIdentity]:
        try:
            self.compose = await self._site.provide_compose()
        except HostRefusedError as error:
            # Without Compose the server shows the refusal as its problem.
            raise EngineProblemError(error.sentence) from None
        return await self._site.identities.current(self._site.link, self.compose, self._apps)


def _sweep(link: HostSession, identity: AppIdentity) -> list[str]:
    """Return the argv of a stop's last step, sweep.sh."""
    words = ["/bin/sh", "-c", surveys.script("sweep.sh"), "moorage-sweep", identity.real_directory]
    for project in (identity.project, identity.last_project):
        words += [project.name, project.directory] if project is not None else ["", ""]
    return [*words, *link.survey.docker]
