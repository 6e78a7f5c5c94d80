"""Processing common to all routes: security headers, CORS, and the client address behind proxies."""

from collections.abc import Sequence

from aiohttp import web

from moorage_controller.api.http.conditional import Conditional
from moorage_controller.api.http.cors import Cors
from moorage_controller.api.http.proxies import Network, TrustedProxies
from moorage_controller.api.http.sse import Streams
from moorage_controller.store.database.version import DatabaseVersion

REQUEST_ID = web.RequestKey("request_id", str)

_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-site",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
    "Cache-Control": "no-store",
}
"""helmet's headers for an API: no loading, framing or caching. Headers set by a reply itself take precedence."""
_HSTS = "max-age=31536000; includeSubDomains"


class HttpEdge:
    """The HTTP edge of the API: `origins` may call from a browser; `proxies` are trusted."""

    def __init__(self, origins: Sequence[str], proxies: Sequence[Network], revisions: DatabaseVersion) -> None:
        self.conditional = Conditional(revisions)
        self.cors = Cors(origins)
        self.proxies = TrustedProxies(proxies)
        self.streams = Streams()

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set the headers of a reply before it starts, including streams."""
        for name, value in _SECURITY.items():
            response.headers.setdefault(name, value)
        cors = self.cors.headers(request)
        if "Access-Control-Allow-Origin" in cors:
            # An allowed dashboard may be on another site; its browser must not block the reply.
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        vary = [part for part in (response.headers.get("Vary"), cors.pop("Vary")) if part]
        response.headers.update({**cors, "Vary": ", ".join(vary), "Server": "Moorage"})
        if REQUEST_ID in request:
            response.headers["X-Request-Id"] = request[REQUEST_ID]
        # Only over HTTPS: over plain HTTP browsers ignore it, and a proxy could cache it.
        if self.proxies.is_https(request):
            response.headers["Strict-Transport-Security"] = _HSTS
