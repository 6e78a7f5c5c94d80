"""The controller's own certificate: issued and renewed in memory, never written to disk."""

from datetime import datetime, timedelta

from moorage_common.clock import Clock
from moorage_common.tls.tls import ClientIdentity

from moorage_controller.pki.authority import Authority

_RENEW_AFTER = timedelta(days=30)


class ControllerIdentity:
    """Provides the current certificate; it is renewed after thirty of its ninety days."""

    def __init__(self, authority: Authority, clock: Clock) -> None:
        self._authority = authority
        self._clock = clock
        self._issued_at: datetime | None = None
        self._current: ClientIdentity

    def current(self) -> ClientIdentity:
        """Return the identity for agents: the same object until its renewal."""
        now = self._clock.now()
        if self._issued_at is None or now - self._issued_at >= _RENEW_AFTER:
            certificate, key = self._authority.issue_controller(now)
            self._current = ClientIdentity(self._authority.certificate_pem, certificate, key)
            self._issued_at = now
        return self._current
