"""Operations on this host: starts and stops are built, run under the journal, followed and cancelled."""

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
    """Runs operations. `environment` is the source of the commands' clean environment: DOCKER_HOST is in it."""

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
        """Start an operation; True if it existed already, running or ended, and nothing was done.

        A stop that can't be written to the journal runs without one. Raises RefusalError; JournalError, for a start;
        Refused, when the operation is now buried.
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
            # The record first: if it says ended, the output read after it is complete.
            record = await self._read(operation_id)
            if record is None:
                raise RefusalError("operation_unknown", "This host's journal has never heard of this operation.")
            # Output of leftover processes after the end doesn't belong to the operation.
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
        """Send TERM to the command's process group, KILL ten seconds later; bury an operation that is unknown here.

        Raises RefusalError `not_cancellable` for a stop: the Engine would continue it.
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
        """Complete the cancels that a previous agent process began; call it once at the start."""
        for record in await asyncio.to_thread(self._journal.running):
            if record.cancelled_by:
                self._begin_to_kill(record.operation_id)

    async def _read(self, operation_id: str) -> Record | None:
        """Return the record of a stop without a journal, else the journal's record. Raises JournalError."""
        return self._unrecorded.read(operation_id) or await asyncio.to_thread(self._journal.read, operation_id)

    async def _read_output(self, operation_id: str, after: int, limit: int) -> bytes:
        if self._unrecorded.read(operation_id) is not None:
            return self._unrecorded.read_output(operation_id, after, limit)
        return await asyncio.to_thread(self._journal.read_output, operation_id, after, limit)

    async def _cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Cancel through the journal; an operation that can't be buried on disk is buried in memory."""
        try:
            return await asyncio.to_thread(self._journal.cancel, operation_id, by)
        except JournalError:
            if await self._read(operation_id) is not None:
                raise
            self._unrecorded.tombstone(operation_id, "cancelled", f"Cancelled by {by} before it started.")
            return CancelOutcome.BURIED

    async def _identify(self, kind: OperationKind, app: WatchedApp) -> AppIdentity:
        if kind is OperationKind.DOWN:
            return await self._identities.for_stop(app)
        identity = await self._identities.ask(app)
        if identity.project is not None:
            # Stored, because a stop doesn't ask Compose for the project name, even after a restart of this agent.
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
        """Refuse, under the locks, a project name whose containers belong to another directory, and harmful files.

        Before an accepted start, paused containers are unpaused: Compose can't start them.
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
    """Run a stop without a journal as a child of this process."""
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
