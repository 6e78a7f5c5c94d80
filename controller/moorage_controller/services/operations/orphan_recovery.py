"""Orphan recovery: take over operations that a controller left in flight when it died."""

import asyncio

from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard

_EVERY_SECONDS = 5.0


class OrphanRecovery:
    """Sends this controller's heartbeat, and takes over orphaned operations."""

    def __init__(self, operations: Operations, timekeeper: ClockJumpGuard) -> None:
        self._operations = operations
        self._timekeeper = timekeeper

    async def run(self) -> None:
        """Check every few seconds until cancelled; in real time, not by the clock, since this is about liveness."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            # Check first: a heartbeat in the new time means that the deadlines are shifted already.
            await self._timekeeper.check()
            await self._operations.recover()
