"""Supervised background loops: a failure is logged, and the loop restarts."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from moorage_common.clock import Clock

from moorage_controller.errors import DatabaseUnavailableError

log = structlog.get_logger(__name__)

_RESTART_SECONDS = 2.0


class Loop:
    """Runs an endless coroutine function in a task of its own, between `start` and `stop`."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self.name = name
        self._run = run
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._supervise(), name=self.name)

    async def stop(self) -> None:
        """Cancel the task, and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
            except DatabaseUnavailableError:
                pass  # logged by the database layer
            except Exception:
                log.exception("background_loop_failed", loop=self.name)
            await self._clock.sleep(_RESTART_SECONDS)
