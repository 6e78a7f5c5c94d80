"""HTTPS in the controller: TLS 1.2 and up, and certificate reload without a restart."""

import asyncio
import ssl
from datetime import datetime
from pathlib import Path

import structlog
from moorage_common.clock import Clock
from moorage_common.tls import x509

from moorage_controller.errors import StartupError

log = structlog.get_logger(__name__)

_POLL_SECONDS = 5.0


class Certificates:
    """The certificate and key files. New connections use the last valid pair; open connections keep theirs."""

    def __init__(self, certificate: Path, key: Path, clock: Clock) -> None:
        self._paths = (certificate, key)
        self._clock = clock
        self._seen = self._stamp()
        try:
            self._current = _context(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise StartupError(
                "bad_tls_files",
                f"TLS_CERT_FILE and TLS_KEY_FILE can't be used ({error}): both must be PEM files that this user can "
                "read, and the key the certificate's.",
            ) from None
        # The listening context is fixed; its SNI callback selects the current one for each connection.
        self.context = _context(certificate, key)
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Read the files again if they changed; return True for a new certificate. An invalid pair is ignored."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self._current = _context(*self._paths)
        except (OSError, ssl.SSLError) as error:
            log.warning("tls_files_unusable", error=str(error))
            return False
        log.info("tls_files_reloaded")
        return True

    def expires_at(self) -> datetime | None:
        """Return the expiry of the certificate in the file (aware, in UTC); None if it can't be read."""
        try:
            return x509.expires_at(self._paths[0].read_bytes())
        except (OSError, ValueError):
            return None

    async def run(self) -> None:
        """Check the files every few seconds, until cancelled."""
        while True:
            await self._clock.sleep(_POLL_SECONDS)
            await asyncio.to_thread(self.reload)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_file_stamp(path) for path in self._paths)


def _file_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Without this, an encrypted key would prompt for a password on the terminal and block.
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted: it must be kept without a password")
