"""Retention: remove old history regularly, so that the database doesn't grow without limit."""

from moorage_common.clock import Clock

from moorage_controller.services.admin.history import History
from moorage_controller.services.audit.audit_archive import AuditArchive

_EVERY_SECONDS = 3600.0
_FIRST_SECONDS = 60.0
"""Delay after the start, when other parts load the database."""


class Retention:
    """Background loop that removes old history and archives old audit entries every hour."""

    def __init__(self, history: History, archive: AuditArchive, clock: Clock) -> None:
        self._history = history
        self._archive = archive
        self._clock = clock

    async def run(self) -> None:
        """Run the retention every hour, until cancelled."""
        await self._clock.sleep(_FIRST_SECONDS)
        while True:
            await self._history.forget_old()
            await self._archive.move_old()
            await self._clock.sleep(_EVERY_SECONDS)
