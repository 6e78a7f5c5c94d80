"""Take-over: what a controller that is gone has left in flight, another one brings to its end."""

import asyncio

from moorage_controller.services.operations import Operations

_EVERY_SECONDS = 5.0


class TakeOver:
    """Says to the others that share its database that this controller lives, and takes up what they left."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def run(self) -> None:
        """Look every few seconds, for ever; real ones, since it is about who runs."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self._operations.recover()
