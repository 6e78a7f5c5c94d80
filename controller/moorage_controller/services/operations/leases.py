"""Who drives which operation, where several controllers share a database.

Two that drive the same one, since one of them was taken for dead and wasn't, do no harm: a host starts an operation
once by its id, output is kept once by its offsets, and an end is written once.
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
"""How long one who wasn't seen counts as alive, by the database's time: four times the pause between two beats."""


class Leases:
    """This controller among those that share its database; on SQLite it is the only one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.controller_id = uuid4()

    async def claim(self) -> Sequence[Operation]:
        """Say that this controller runs, and take over the operations of those that don't any more."""
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
        """Tell whether another controller goes by the time that is shown now: then it is this one that was away.

        Where the clock that all share was set, the first to notice is the first who is seen by the new time; this says
        so of this one, in the caller's write transaction.
        """
        if not self._database.is_shared:
            return False
        now = await self._database.now(connection)
        others = await controllers.seen_between(connection, now - _ALIVE, now + _ALIVE)
        await controllers.heartbeat(connection, self.controller_id, now)
        return bool(set(others) - {self.controller_id})

    async def unregister(self) -> None:
        """Say that this controller ends: what it drove is free at once."""
        with suppress(DatabaseUnavailableError):
            async with self._database.write() as connection:
                await controllers.unregister(connection, self.controller_id)
