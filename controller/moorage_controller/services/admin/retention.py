"""Retention: what is over is forgotten in time, so that the database doesn't grow for ever."""

from moorage_common.clock import Clock

from moorage_controller.services.admin.history import History
from moorage_controller.services.audit.audit_archive import AuditArchive

_EVERY_SECONDS = 3600.0
_FIRST_SECONDS = 60.0
"""Not in the moment of a start, when everything else wants the database as well."""


class Retention:
    """Has what is too old forgotten, every hour."""

    def __init__(self, history: History, archive: AuditArchive, clock: Clock) -> None:
        self._history = history
        self._archive = archive
        self._clock = clock

    async def run(self) -> None:
        """Forget, again and again, for ever."""
        await self._clock.sleep(_FIRST_SECONDS)
        while True:
            await self._history.forget_old()
            await self._archive.move_old()
            await self._clock.sleep(_EVERY_SECONDS)
