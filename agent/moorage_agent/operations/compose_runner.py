"""Operations on this host: what a start or a stop is, run under the journal, followed and cancelled."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from moorage_common.compose.orders import down_order, paused, up_order
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.states import OperationKind
from moorage_common.journal.journal import (
    CancelOutcome,
    Guard,
    Journal,
    JournalError,
    Launch,
    Order,
    Record,
    Refused,
    State,
)
from moorage_common.journal.unrecorded import Unrecorded

from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.docker.engine import Engine
from moorage_agent.errors import RefusalError
from moorage_agent.operations import sweep

log = structlog.get_logger(__name__)

_BATCH_BYTES = 256 * 1024
_POLL_SECONDS = 0.1
_KILL_AFTER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output from a byte offset on."""

    offset: int
    data: bytes


class ComposeRunner:
    """Runs operations. `environment` is what a clean environment is made from: DOCKER_HOST is in it."""

    def __init__(
        self,
        journal: Journal,
        engine: Engine,
        identities: Identities,
        deadlines: Deadlines,
        compose: str,
        environment: Mapping[str, str],
    ) -> None:
        self._journal = journal
        self._deadlines = deadlines
        self._engine = engine
        self._identities = identities
        self._compose = compose
        self._environment = environment
        self._unrecorded = Unrecorded()
        self._killers: set[asyncio.Task[None]] = set()

    async def start(self, operation_id: str, kind: OperationKind, app: WatchedApp) -> bool:
        """Start an operation; True when it was there already, running or ended, and was left alone.

        A stop that the journal doesn't take runs without one. Raises RefusalError; JournalError, for a start;
        Refused, when it is buried from now on.
        """
        is_stop = kind is OperationKind.DOWN
        try:
            if await self._read(operation_id) is not None:
                return True
        except JournalError:
            if not is_stop:
                raise
        identity = await self._identify(kind, app)
        order, names = await self._order(operation_id, kind, identity)
        guard = self._guard(kind, identity, names)
        try:
            launch = await self._journal.launch(order, guard)
        except JournalError as error:
            if not is_stop:
                raise
            await self._unrecorded.launch(order, guard, self._journal.locks, str(error), _execute)
            return False
        log.info("operation_launched", operation_id=operation_id, kind=kind.value, outcome=launch.value)
        return launch is not Launch.STARTED

    async def follow(self, operation_id: str, after: int) -> AsyncIterator[Chunk | Record]:
        """Yield output as it comes, then the record of the end. Raises RefusalError for an unknown operation."""
        while True:
            # The record first: when it says ended, the output read after it is the whole of it.
            record = await self._read(operation_id)
            if record is None:
                raise RefusalError("operation_unknown", "This host's journal has never heard of this operation.")
            # What something left behind prints after the end is not the operation's.
            limit = _BATCH_BYTES if record.state is State.RUNNING else min(_BATCH_BYTES, max(record.length - after, 0))
            data = await self._read_output(operation_id, after, limit)
            if data:
                yield Chunk(after, data)
                after += len(data)
            elif record.state is State.RUNNING:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                yield record
                return

    async def cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Send TERM to the command's process group, KILL ten seconds later; bury an operation that never came here.

        Raises RefusalError `not_cancellable` for a stop: the Engine goes on with it.
        """
        record = await self._read(operation_id)
        if record is not None and record.state is State.RUNNING and record.spec.get("kind") == OperationKind.DOWN:
            raise RefusalError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
        ended = self._unrecorded.read(operation_id)
        if ended is not None:
            return CancelOutcome.BURIED if ended.state is State.BURIED else CancelOutcome.ALREADY_ENDED
        outcome = await self._cancel(operation_id, by)
        if outcome is CancelOutcome.SIGNALLED:
            self._begin_to_kill(operation_id)
        return outcome

    async def resume_cancels(self) -> None:
        """See the cancels through that an agent before this one began; call it once at the start."""
        for record in await asyncio.to_thread(self._journal.running):
            if record.cancelled_by:
                self._begin_to_kill(record.operation_id)

    async def _read(self, operation_id: str) -> Record | None:
        """Return what is known of a stop without a journal, else the journal's word. Raises JournalError."""
        return self._unrecorded.read(operation_id) or await asyncio.to_thread(self._journal.read, operation_id)

    async def _read_output(self, operation_id: str, after: int, limit: int) -> bytes:
        if self._unrecorded.read(operation_id) is not None:
            return self._unrecorded.read_output(operation_id, after, limit)
        return await asyncio.to_thread(self._journal.read_output, operation_id, after, limit)

    async def _cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Cancel by the journal; what never began, and can't be buried on disk, this agent itself never begins."""
        try:
            return await asyncio.to_thread(self._journal.cancel, operation_id, by)
        except JournalError:
            if await self._read(operation_id) is not None:
                raise
            self._unrecorded.bury(operation_id, "cancelled", f"Cancelled by {by} before it started.")
            return CancelOutcome.BURIED

    async def _identify(self, kind: OperationKind, app: WatchedApp) -> AppIdentity:
        if kind is OperationKind.DOWN:
            return await self._identities.for_stop(app)
        identity = await self._identities.ask(app)
        if identity.project is not None:
            # A stop asks nobody what the app is called, not even one after a restart of this agent.
            await self._deadlines.called(app.cd_path, identity.project)
        return identity

    async def _order(self, operation_id: str, kind: OperationKind, identity: AppIdentity) -> tuple[Order, set[str]]:
        if kind is OperationKind.DOWN:
            containers = (await asyncio.to_thread(self._engine.containers)).values()
            swept = sweep.command(identity)
            return down_order(operation_id, identity, containers, self._compose, swept, self._environment)
        if identity.forbids_start:
            raise RefusalError(identity.problem_code, identity.problem)
        return up_order(operation_id, kind, identity, self._compose, self._environment)

    def _guard(self, kind: OperationKind, identity: AppIdentity, names: set[str]) -> Guard:
        """Refuse, under the locks, a project name whose containers belong to another directory, and files of harm.

        Before a start that isn't refused, what is paused goes on: Compose can't start it.
        """

        async def guard() -> Refused | None:
            containers = await asyncio.to_thread(self._engine.containers)
            taken = identity.refusal(names, containers.values())
            if taken is not None or kind is OperationKind.DOWN:
                return taken
            others = identity.other_files(containers.values())
            refused = others or await self._identities.recheck(identity)
            if refused is None:
                for container_id in paused(identity, containers.values()):
                    await asyncio.to_thread(self._engine.unpause, container_id)
            return refused

        return guard

    def _begin_to_kill(self, operation_id: str) -> None:
        task = asyncio.create_task(self._kill_later(operation_id))
        self._killers.add(task)
        task.add_done_callback(self._killers.discard)

    async def _kill_later(self, operation_id: str) -> None:
        await asyncio.sleep(_KILL_AFTER_SECONDS)
        if await asyncio.to_thread(self._journal.kill, operation_id):
            log.warning("operation_killed", operation_id=operation_id)


async def _execute(argv: Sequence[str], environment: Mapping[str, str], take: Callable[[bytes], None]) -> int:
    """Run a stop that has no journal as a child of this process."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=environment,
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    while data := await process.stdout.read(_BATCH_BYTES):
        take(data)
    return await process.wait()
