"""Take-over: what a controller that is gone has left in flight, another one brings to its end."""

import asyncio

from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard

_EVERY_SECONDS = 5.0


class OrphanRecovery:
    """Says to the others that share its database that this controller lives, and takes up what they left."""

    def __init__(self, operations: Operations, timekeeper: ClockJumpGuard) -> None:
        self._operations = operations
        self._timekeeper = timekeeper

    async def run(self) -> None:
        """Look every few seconds, for ever; real ones, since it is about who runs."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            # First: who is seen by a clock that was set has seen to the deadlines.
            await self._timekeeper.check()
            await self._operations.recover()
