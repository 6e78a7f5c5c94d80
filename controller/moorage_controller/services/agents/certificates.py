"""Hourly renewal of agent certificates that are due."""

from moorage_common.clock import Clock

from moorage_controller.services.agents.renewal import Renewals

_EVERY_SECONDS = 3600.0


class Certificates:
    """Background loop that renews agent certificates in time."""

    def __init__(self, renewals: Renewals, clock: Clock) -> None:
        self._renewals = renewals
        self._clock = clock

    async def run(self) -> None:
        """Renew due certificates every hour, until cancelled."""
        while True:
            await self._renewals.renew_due()
            await self._clock.sleep(_EVERY_SECONDS)
