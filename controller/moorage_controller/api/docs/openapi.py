"""The OpenAPI 3.1 document, generated from the route table, so that it can't differ from the served routes."""

import inspect
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from openapi_pydantic import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from moorage_controller.api.docs.details import DETAILS, EVENT_STREAM, UNCACHED, RouteDocs
from moorage_controller.api.http import idempotency
from moorage_controller.api.http.problems import CONTENT_TYPE
from moorage_controller.api.routes import Route
from moorage_controller.auth.roles import Role

_JSON = "application/json"
_REF = "#/components/schemas/{model}"
_ROLES = {Role.NOBODY: "nobody: no token needed", Role.USER: "user", Role.ADMIN: "admin"}
_MEDIA: dict[str, dict[str, Any]] = {
    EVENT_STREAM: {
        "type": "object",
        "description": "One event of the stream.",
        "required": ["data"],
        "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    }
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `error` repeats `detail`; `code` is stable.",
    "required": ["type", "title", "status", "detail", "code", "requestId", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
        "requestId": {"type": "string"},
        "error": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "output": {"type": "string", "description": "What Compose printed, of an operation that failed."},
        "operationId": {"type": "string"},
    },
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document. Raises ValueError for details of a route that doesn't exist."""
    unknown = set(DETAILS) - {(route.method, route.path) for route in routes}
    if unknown:
        raise ValueError(f"details are kept of routes that aren't there: {sorted(unknown)}")
    schemas, definitions = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Moorage",
            "version": version("moorage-controller"),
            "description": "Runs Docker Compose apps on many hosts, and stops each when its time is over.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {**definitions, "Problem": _PROBLEM},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
    return OpenAPI.model_validate(made).model_dump(mode="json", by_alias=True, exclude_unset=True)


def _schemas(routes: Sequence[Route]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    wanted: list[tuple[type[BaseModel], Any]] = []
    for route in routes:
        wanted.append((route.reply, "serialization"))
        if route.body is not None:
            wanted.append((route.body, "validation"))
    found, whole = models_json_schema(list(dict.fromkeys(wanted)), by_alias=True, ref_template=_REF)
    return dict(found), whole.get("$defs", {})


def _operation(route: Route, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    details = DETAILS.get((route.method, route.path), RouteDocs())
    about = inspect.getdoc(route.handler) or ""
    made: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "tags": [_tag(route.path)],
        "summary": about.partition(": ")[2].partition("\n")[0] or route.handler.__name__.replace("_", " ").capitalize(),
        "description": f"{about}\n\nLeast role: {_ROLES[route.role]}.",
        "parameters": _parameters(route, details),
        "responses": _responses(route, details, schemas),
    }
    if route.role is Role.NOBODY:
        made["security"] = []
    if route.body is not None:
        content: dict[str, Any] = {"schema": schemas[route.body, "validation"]}
        if details.request is not None:
            content["example"] = details.request
        required = any(field.is_required() for field in route.body.model_fields.values())
        made["requestBody"] = {"required": required, "content": {_JSON: content}}
    return made


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "api" else parts[0]


def _parameters(route: Route, details: RouteDocs) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{id}" in route.path:
        found.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}})
    query = dict(details.query)
    if route.many:
        query |= {
            "limit": ({"type": "integer", "minimum": 1, "maximum": 1000}, "The most entries to return."),
            "offset": ({"type": "integer", "minimum": 0, "maximum": 10**9, "default": 0}, "Entries left out before."),
        }
    found += [
        {"name": name, "in": "query", "schema": schema, "description": about} for name, (schema, about) in query.items()
    ]
    if _conditional(route):
        found.append(_header("If-None-Match", "An ETag held already: 304 where it is still so."))
    if EVENT_STREAM in details.media:
        found.append(_header("Last-Event-ID", "The `id` of the last event that was seen: go on after it."))
    if details.asynchronous:
        found.append(_header("Prefer", "`respond-async`: don't wait for the end. `wait=N`: wait N seconds at most."))
    if route.creates:
        about = "A new UUID for each new request; the same request under the same key gets the first reply for 24 h."
        found.append(_header(idempotency.HEADER, about, {"pattern": idempotency.PATTERN}))
    return found


def _header(name: str, about: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string", **(schema or {})}, "description": about}


def _conditional(route: Route) -> bool:
    return route.method == "GET" and route.path not in UNCACHED


def _responses(route: Route, details: RouteDocs, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    schema = schemas[route.reply, "serialization"]
    content: dict[str, Any] = {"schema": {"type": "array", "items": schema} if route.many else schema}
    if details.reply is not None:
        content["example"] = details.reply
    shown = {media: {"schema": _MEDIA.get(media, {"type": "string"})} for media in details.media} or {_JSON: content}
    success: dict[str, Any] = {"description": HTTPStatus(details.status).phrase, "content": shown}
    found: dict[str, Any] = {str(details.status): success}
    if _conditional(route):
        success["headers"] = {"ETag": {"schema": {"type": "string"}}}
        found["304"] = {"description": "What you hold is still so"}
    if route.creates:
        about = "`true`: the reply that this request got before"
        success["headers"] = {idempotency.REPLAYED: {"schema": {"type": "string"}, "description": about}}
    if route.many:
        total = {"schema": {"type": "integer"}, "description": "How many there are"}
        success["headers"] = {**success.get("headers", {}), "X-Total-Count": total}
    if details.asynchronous:
        found["202"] = {
            "description": "It goes on; Location is where to look",
            "headers": {"Location": {"schema": {"type": "string"}}},
            "content": {_JSON: {"schema": {"$ref": _REF.format(model="OperationOut")}}},
        }
    for status, codes in sorted(_errors(route, details).items()):
        found[str(status)] = _error(status, codes)
    if route.path == "/readyz":
        found["503"] = {"description": "Which part isn't well", "content": {_JSON: {"schema": schema}}}
    return found


def _errors(route: Route, details: RouteDocs) -> dict[int, list[str]]:
    """Return every error of a route: those of its role, path and body, its own, and internal errors."""
    found: dict[int, list[str]] = {
        429: ["too_many_requests"],
        500: ["internal_error"],
        503: ["database_unavailable"],
    }
    if route.role is not Role.NOBODY:
        found[401] = ["no_token", "bad_token"]
        found[403] = ["forbidden"]
    if "{id}" in route.path:
        found[404] = [f"{_tag(route.path).removesuffix('s')}_not_found", "not_found"]
    if route.body is not None:
        found |= {
            408: ["body_too_slow"],
            413: ["body_too_large"],
            415: ["unsupported_media_type"],
            422: ["invalid_field"],
        }
        found[400] = ["unreadable_json", "not_an_object", "request_cut"]
    if route.many or details.query:
        found[422] = ["invalid_field"]
    if route.creates:
        found[422].append("idempotency_key_reused")
    for status, codes in details.errors.items():
        found[status] = list(dict.fromkeys([*found.get(status, []), *codes]))
    return found


def _error(status: int, codes: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}",
        "content": {CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        made["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait"}}
    if status == HTTPStatus.UNAUTHORIZED:
        made["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return made
