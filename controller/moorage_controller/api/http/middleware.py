"""Processing around every handler: request id, headers, authentication, role, body, errors."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from uuid import uuid4

import structlog
from aiohttp import web
from moorage_common.logging import is_request_id
from pydantic import BaseModel, ValidationError

from moorage_controller.api.docs import document
from moorage_controller.api.docs.details import EVENT_STREAM, UNCACHED
from moorage_controller.api.http import idempotency, problems
from moorage_controller.api.http.call import Call, Services, to_json
from moorage_controller.api.http.field_errors import field_errors
from moorage_controller.api.http.http_edge import REQUEST_ID, HttpEdge
from moorage_controller.api.http.replies import Raw, Reply, page
from moorage_controller.api.http.sse import Stream
from moorage_controller.api.routes import ROUTES, Route
from moorage_controller.auth.rate_limit import Limit, network
from moorage_controller.auth.roles import Origin, Principal, Role, Scope
from moorage_controller.errors import (
    ForbiddenError,
    InvalidError,
    MoorageError,
    NotAuthenticatedError,
    TooManyRequestsError,
    TooSlowError,
    UnreadableError,
    UnsupportedMediaError,
)
from moorage_controller.services.admin.meters import Meters

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_LIMIT = 1024 * 1024
CUT = web.RequestKey("cut", bool)
"""Set if the client disconnected, or sent invalid data, before the whole body had arrived."""
_BODY_SECONDS = 30.0
_FRAMEWORK = {
    404: ("not_found", "There is no such path in this API."),
    405: ("method_not_allowed", "This path doesn't take that method."),
    413: ("body_too_large", "The body is larger than 1 MiB."),
}


def build(services: Services, surface: HttpEdge) -> web.Application:
    """Return the HTTP application that serves the route table."""

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        sent = request.headers.get("X-Request-Id", "")
        request_id = sent if is_request_id(sent) else str(uuid4())
        request[REQUEST_ID] = request_id
        begun = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            preflight = surface.cors.preflight(request)
            response = await _answer(request, handler, request_id) if preflight is None else preflight
            seconds = time.monotonic() - begun
            _log_request(request, response, seconds, surface)
            _measure(request, response, seconds, services.metrics.meters)
        return response

    slashes = web.normalize_path_middleware(
        append_slash=False, remove_slash=True, merge_slashes=False, redirect_class=web.HTTPPermanentRedirect
    )
    application = web.Application(middlewares=[around, slashes], client_max_size=BODY_LIMIT)
    # A signal instead of middleware: it also runs before the first byte of a stream.
    application.on_response_prepare.append(surface.prepare)
    application.on_shutdown.append(surface.streams.close)
    for route in (*ROUTES, *document.routes(ROUTES)):
        endpoint = _endpoint(route, services, surface)
        application.router.add_route(route.method, route.path, endpoint)
        if route.method == "GET":
            # Uptime monitors and load balancers use HEAD; the library omits the body.
            application.router.add_route("HEAD", route.path, endpoint)
    return application


def _log_request(request: web.Request, response: web.StreamResponse, seconds: float, surface: HttpEdge) -> None:
    """Log a request without its query, which may contain secrets by mistake."""
    log.info(
        "request",
        method=request.method,
        # The raw, percent-encoded path: decoded, it could contain control characters for a terminal.
        path=request.rel_url.raw_path,
        status=response.status,
        milliseconds=round(seconds * 1000, 1),
        address=surface.proxies.client(request),
        **({"cut": True} if CUT in request else {}),
    )


def _measure(request: web.Request, response: web.StreamResponse, seconds: float, meters: Meters) -> None:
    resource = request.match_info.route.resource
    # Arbitrary values from callers must not become labels.
    method, route = (request.method, resource.canonical) if resource is not None else ("other", "none")
    goes_on = not isinstance(response, web.Response)
    meters.request(method, route, response.status, None if goes_on else seconds)
    code = response.get(problems.CODE) if isinstance(response, web.Response) else None
    if code is not None:
        meters.problem(response.status, code)


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except MoorageError as error:
        return problems.from_error(error, request_id)
    except web.HTTPPermanentRedirect as error:
        moved = problems.problem(error.status, "moved", "This path has no slash at its end.", request_id)
        moved.headers["Location"] = str(error.location)
        return moved
    except web.HTTPException as error:
        code, sentence = _FRAMEWORK.get(error.status, ("bad_request", "The request can't be understood."))
        return problems.problem(error.status, code, sentence, request_id)
    except Exception:
        log.exception("request_failed")
        sentence = "Something went wrong here; the log has it under this request id."
        return problems.problem(500, "internal_error", sentence, request_id)


def _endpoint(route: Route, services: Services, surface: HttpEdge) -> Handler:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        origin = Origin(surface.proxies.client(request), _text(request.headers.get("User-Agent", ""))[:500] or None)
        principal = await _admit(route, request, services, origin)
        body = await _read_body(route.body, request) if route.body is not None else None
        keyed = await idempotency.keyed(route, request, principal, services.fingerprints)
        call = Call(services, request, origin, principal, body, keyed)
        if route.method != "GET" or route.path in UNCACHED:
            reply = await idempotency.answer(route, call)
            if isinstance(reply.body, Stream) and request.method == "HEAD":
                await reply.body.events.aclose()
                return web.Response(content_type=EVENT_STREAM)
            if isinstance(reply.body, Stream):
                return await surface.streams.serve(request, reply.body, lambda: _listens(route, request, services))
            return _respond(page(call, reply) if route.many else reply)

        async def make() -> web.Response:
            return _respond(page(call, await route.handler(call)) if route.many else await route.handler(call))

        caller = str(principal.user_id) if route.many and principal is not None else None
        return await surface.conditional.answer(request, caller, make)

    return endpoint


def _text(header: str) -> str:
    """Return a header without bytes that are not UTF-8, which the library keeps as unstorable surrogates."""
    return header.encode(errors="replace").decode()


async def _admit(route: Route, request: web.Request, services: Services, origin: Origin) -> Principal | None:
    """Authenticate, and count the request against the user's budget, or the address's without a user."""
    try:
        principal = await _authenticate(route, request, services)
    except NotAuthenticatedError:
        _count(route, services, network(origin.ip_address))
        raise
    _count(route, services, network(origin.ip_address) if principal is None else str(principal.user_id))
    if principal is not None:
        _check_rights(route, principal)
    return principal


async def _listens(route: Route, request: web.Request, services: Services) -> None:
    """Raise if the caller of a stream has lost access, such as after a logout or the deletion of the user."""
    principal = await _authenticate(route, request, services)
    if principal is not None:
        _check_rights(route, principal)


def _count(route: Route, services: Services, caller: str) -> None:
    if route.limit is Limit.NONE:
        return
    seconds = services.rate_limits[route.limit].take(caller)
    if seconds > 0:
        raise TooManyRequestsError(f"Too many requests: try again in {seconds} s.", seconds)


def _check_rights(route: Route, principal: Principal) -> None:
    if principal.role < route.role:
        raise ForbiddenError("forbidden", "Your role doesn't allow this: ask an admin.")
    if principal.scope < route.scope:
        if route.scope is Scope.SESSION:
            raise ForbiddenError("login_needed", "An API token can't do this: log in with name and password.")
        scope = route.scope.name.lower()
        raise ForbiddenError("scope_missing", f"This API token doesn't have the scope {scope}: make one that does.")


async def _authenticate(route: Route, request: web.Request, services: Services) -> Principal | None:
    if route.role is Role.NOBODY:
        return None
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthenticatedError("no_token", "This needs a token: send Authorization: Bearer TOKEN.")
    return await services.users.authenticate(token.strip())


async def _read_body(model: type[BaseModel], request: web.Request) -> BaseModel:
    """Read and validate a body. A missing one counts as an empty object, because dashboards send stops without one."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise TooSlowError("body_too_slow", f"The body must be here within {_BODY_SECONDS:.0f} seconds.") from None
    except (OSError, web.RequestPayloadError):
        request[CUT] = True
        raise UnreadableError("request_cut", "The body broke off before all of it had come: send it again.") from None
    if raw.strip() and request.content_type not in {"application/json", "application/octet-stream"}:
        raise UnsupportedMediaError("unsupported_media_type", "Send the body as Content-Type: application/json.")
    try:
        document = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        raise UnreadableError("unreadable_json", "The body is not JSON that can be read.") from None
    if not isinstance(document, dict):
        raise UnreadableError("not_an_object", "The body must be a JSON object.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidError(field_errors(error)) from None


def _respond(reply: Reply) -> web.Response:
    if isinstance(reply.body, Raw):
        raw = reply.body
    elif isinstance(reply.body, BaseModel):
        raw = Raw(to_json(reply.body).encode(), "application/json")
    else:
        assert not isinstance(reply.body, Stream), "a path of streams must be in UNCACHED"
        raw = Raw(f"[{','.join(to_json(item) for item in reply.body)}]".encode(), "application/json")
    assert reply.status != HTTPStatus.NO_CONTENT, "a success always has a JSON body"
    return web.Response(
        body=raw.data, status=reply.status, content_type=raw.content_type, charset="utf-8", headers=reply.headers
    )
