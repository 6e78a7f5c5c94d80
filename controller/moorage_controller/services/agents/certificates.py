"""Looks every hour for certificates that are to be renewed."""

from moorage_common.clock import Clock

from moorage_controller.services.agents.renewal import Renewals

_EVERY_SECONDS = 3600.0


class Certificates:
    """Has agents' certificates renewed in time."""

    def __init__(self, renewals: Renewals, clock: Clock) -> None:
        self._renewals = renewals
        self._clock = clock

    async def run(self) -> None:
        """Look every hour, for ever."""
        while True:
            await self._renewals.renew_due()
            await self._clock.sleep(_EVERY_SECONDS)
