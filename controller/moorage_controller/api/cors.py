"""Cross-origin requests: for the dashboards named in FRONTEND_URL, and for nobody else (Fetch standard)."""

from collections.abc import Sequence

from aiohttp import web

_METHODS = "GET, POST, PUT, DELETE"
_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, X-Request-Id"
_EXPOSED = "ETag, X-Total-Count, X-Request-Id, Location, Retry-After, Idempotency-Replayed"
_MAX_AGE = "600"


class Cors:
    """The origins whose pages may call; never a wildcard, and no cookies: a token is sent by hand."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def preflight(self, request: web.Request) -> web.Response | None:
        """Answer a browser's question whether it may; None where the request isn't one."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        return web.Response(status=204)

    def headers(self, request: web.Request) -> dict[str, str]:
        """Return the headers of a reply; to an origin that isn't known, nothing but that the reply depends on it."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return {"Vary": "Origin"}
        allowed = {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}
        if request.method == "OPTIONS":
            allowed |= {
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _HEADERS,
                "Access-Control-Max-Age": _MAX_AGE,
            }
        return allowed
