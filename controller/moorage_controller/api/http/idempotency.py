"""`Idempotency-Key` on creating requests (draft-ietf-httpapi-idempotency-key-header, except for its quotes).

The key may be quoted or not, and is used verbatim. A second request waits for the first, and gets its reply. Errors are
not stored: a refused request has changed nothing, and may be sent again.
"""

import re

from aiohttp import web

from moorage_controller.api.http.call import Call, Fingerprints
from moorage_controller.api.http.replies import Raw, Reply
from moorage_controller.api.routes import Route
from moorage_controller.auth.roles import Principal
from moorage_controller.errors import InvalidError
from moorage_controller.services.idempotency import KeyedRequest, ReplayError

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
PATTERN = "^[!-~]{1,255}$"


async def keyed(
    route: Route, request: web.Request, principal: Principal | None, fingerprints: Fingerprints
) -> KeyedRequest | None:
    """Return the request with its key, None without one. Raises InvalidError for an invalid key."""
    sent = request.headers.getall(HEADER, [])
    if not route.creates or principal is None or not sent:
        return None
    if len(sent) > 1 or not re.fullmatch(PATTERN, sent[0]):
        raise InvalidError({HEADER: "Send it once, of 1 to 255 visible ASCII characters: a new UUID is best."})
    whole = b"\0".join((route.method.encode(), route.path.encode(), await request.read()))
    return KeyedRequest(principal.user_id, sent[0], fingerprints(whole))


async def answer(route: Route, call: Call) -> Reply:
    """Return the handler's reply, or the stored one of the same request."""
    try:
        return await route.handler(call)
    except ReplayError as repeated:
        return Reply(Raw(repeated.reply.encode(), "application/json"), 201, {REPLAYED: "true"})
