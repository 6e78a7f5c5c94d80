"""Leases: assign operations to controllers that share a database.

Two controllers driving the same operation, after one was wrongly considered dead, do no harm: a host starts an
operation once per ID, output is stored once per offset, and an end is written once.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage_controller.errors import DatabaseUnavailableError
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import controllers
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables.operations import Operation

_ALIVE = timedelta(seconds=20)
"""How long a controller counts as alive after its last heartbeat, in database time: four heartbeat intervals."""


class Leases:
    """Heartbeat and claims of this controller; on SQLite it is the only one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.controller_id = uuid4()

    async def claim(self) -> Sequence[Operation]:
        """Send a heartbeat, and take over the operations of controllers that no longer run."""
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            await controllers.heartbeat(connection, self.controller_id, now)
            alive = {self.controller_id}
            if self._database.is_shared:
                alive |= set(await controllers.seen_between(connection, now - _ALIVE, now + _ALIVE))
            left = [each for each in await store.all_in_flight(connection) if each.driver not in alive]
            for operation in left:
                await store.claim(connection, operation, self.controller_id)
        return left

    async def peers_use_current_time(self, connection: AsyncConnection) -> bool:
        """Return whether another controller has a heartbeat near the current database time.

        If so, deadlines need no shift by this controller. After a jump of the shared clock, the first controller that
        notices it finds no such heartbeat; its own heartbeat is updated in the caller's write transaction.
        """
        if not self._database.is_shared:
            return False
        now = await self._database.now(connection)
        others = await controllers.seen_between(connection, now - _ALIVE, now + _ALIVE)
        await controllers.heartbeat(connection, self.controller_id, now)
        return bool(set(others) - {self.controller_id})

    async def unregister(self) -> None:
        """Remove this controller, so that its operations can be taken over immediately."""
        with suppress(DatabaseUnavailableError):
            async with self._database.write() as connection:
                await controllers.unregister(connection, self.controller_id)
