"""Cross-origin requests, only from the dashboards in FRONTEND_URL (Fetch standard)."""

from collections.abc import Sequence

import structlog
from aiohttp import web
from moorage_common.untrusted import clean_line

log = structlog.get_logger(__name__)

_METHODS = "GET, POST, PUT, DELETE"
_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, X-Request-Id"
_EXPOSED = "ETag, X-Total-Count, X-Request-Id, Location, Retry-After, Idempotency-Replayed"
_MAX_AGE = "600"
_MOST_TOLD, _MOST_ORIGIN = 100, 300
"""Limits of the log of unknown origins: their number until the next start, and the characters of one."""


class Cors:
    """The allowed origins; no wildcard, and no cookies, because pages send the token in a header."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)
        self._logged: set[str] = set()

    def preflight(self, request: web.Request) -> web.Response | None:
        """Answer a preflight request; None if the request isn't one."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        return web.Response(status=204)

    def headers(self, request: web.Request) -> dict[str, str]:
        """Return the CORS headers of a reply; an unknown origin gets only `Vary`."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            if origin is not None and origin.partition("://")[2] != request.host:
                self._log_unknown(clean_line(origin, _MOST_ORIGIN))
            return {"Vary": "Origin"}
        allowed = {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}
        if request.method == "OPTIONS":
            allowed |= {
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _HEADERS,
                "Access-Control-Max-Age": _MAX_AGE,
            }
        return allowed

    def _log_unknown(self, origin: str) -> None:
        """Log once that this origin isn't allowed, and which setting allows it."""
        if origin in self._logged or len(self._logged) >= _MOST_TOLD:
            return
        self._logged.add(origin)
        hint = "Browsers hide the replies from this page: add its origin to FRONTEND_URL if it is a dashboard of yours."
        log.warning("origin_unknown", origin=origin, hint=hint)
