"""The dead man's switch: the agent itself stops an app that is still running a minute after its deadline."""

import asyncio
from contextlib import suppress
from uuid import UUID, uuid5

import structlog
from moorage_common.clock import backoff
from moorage_common.docker.states import OperationKind
from moorage_common.journal.journal import JournalError, Record, Refused, State

from moorage_agent.apps.identities import WatchedApp
from moorage_agent.deadlines.deadlines import Deadlines, StoredDeadline
from moorage_agent.errors import RefusalError
from moorage_agent.operations.compose_runner import ComposeRunner

log = structlog.get_logger(__name__)

LATE_SECONDS = 60.0
"""The controller's time, after the deadline, to stop the app."""
_FIRST_RETRY, _LAST_RETRY = 10.0, 60.0
_LONGEST_SLEEP = 30.0
_MAX_CONCURRENT = 4


class DeadManSwitch:
    """Stops apps that are past their deadline; retries each stop until it succeeds."""

    def __init__(self, deadlines: Deadlines, runner: ComposeRunner) -> None:
        self._deadlines = deadlines
        self._runner = runner
        self._turns = asyncio.Semaphore(_MAX_CONCURRENT)
        self._stopping: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch the deadlines until cancelled."""
        changed = asyncio.Event()
        stop_listening = self._deadlines.listen(changed.set)
        try:
            while True:
                for held in self._deadlines.held:
                    if self._left(held) <= 0 and held.app_id not in self._stopping:
                        self._begin(held)
                waits = [left for held in self._deadlines.held if (left := self._left(held)) > 0]
                with suppress(TimeoutError):
                    async with asyncio.timeout(min([*waits, _LONGEST_SLEEP])):
                        await changed.wait()
                changed.clear()
        finally:
            stop_listening()
            stopping = list(self._stopping.values())
            for task in stopping:
                task.cancel()
            await asyncio.gather(*stopping, return_exceptions=True)

    def _left(self, held: StoredDeadline) -> float:
        return held.due + LATE_SECONDS - self._deadlines.boot_clock()

    def _begin(self, held: StoredDeadline) -> None:
        task = self._stopping[held.app_id] = asyncio.create_task(self._stop(held), name=f"dead man {held.app_id}")
        task.add_done_callback(lambda _: self._stopping.pop(held.app_id, None))

    async def _stop(self, held: StoredDeadline) -> None:
        """Try once; after a failure wait before the next try."""
        stopped = False
        try:
            async with self._turns:
                stopped = await self._try(held)
            await self._deadlines.record_attempt(held, stopped=stopped)
        except (RefusalError, JournalError) as error:
            log.warning("dead_man_failed", app_id=held.app_id, directory=held.cd_path, error=str(error))
        except Exception:
            # One app's failure must not affect the others.
            log.exception("dead_man_failed", app_id=held.app_id, directory=held.cd_path)
        if not stopped:
            await asyncio.sleep(backoff(held.tries, _FIRST_RETRY, _LAST_RETRY))

    async def _try(self, held: StoredDeadline) -> bool:
        """Run a stop to its end, or attach to one that a previous agent process began; True if it succeeded."""
        operation_id = str(uuid5(UUID(held.run_id), f"{held.number} {held.tries}"))
        log.warning("dead_man_acts", app_id=held.app_id, directory=held.cd_path, operation_id=operation_id)
        try:
            await self._runner.start(operation_id, OperationKind.DOWN, WatchedApp(held.cd_path, held.project))
        except Refused as error:
            # Another operation holds the lock, perhaps a stop; this id is buried, so the next try needs another one.
            log.info("dead_man_waits", app_id=held.app_id, reason=str(error))
            return False
        await self._deadlines.record_stop(held, operation_id)
        ended: Record | None = None
        async for item in self._runner.follow(operation_id, 0):
            if isinstance(item, Record):
                ended = item
        return ended is not None and ended.state is State.EXITED and ended.exit_code == 0
