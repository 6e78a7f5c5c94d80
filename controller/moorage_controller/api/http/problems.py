"""Errors as RFC 9457 problem documents: the only mapping of error classes and codes to HTTP."""

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

from moorage_controller import errors

CONTENT_TYPE = "application/problem+json"
CODE = web.ResponseKey("code", str)
"""Response key with a problem's code, for metrics."""

_STATUS: dict[type[errors.MoorageError], int] = {
    errors.UnreadableError: 400,
    errors.NotAuthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.TooSlowError: 408,
    errors.UnsupportedMediaError: 415,
    errors.InvalidError: 422,
    errors.TooManyRequestsError: 429,
    errors.OperationFailedError: 502,
    errors.HostUnreachableError: 503,
    errors.DatabaseUnavailableError: 503,
}

_OPERATION_STATUS = {
    "host_unreachable": 503,
    "no_agent": 503,
    "engine_unreachable": 503,
    "journal_full": 503,
    "journal_unavailable": 503,
    "deadlines_not_kept": 503,
    "deadline_exceeded": 504,
    "path_not_allowed": 403,
    "provider_not_allowed": 403,
    "remote_resource_not_allowed": 403,
    "bind_mount_not_allowed": 403,
    "directory_busy": 409,
    "project_busy": 409,
    "project_taken": 409,
    "other_files": 409,
    "operation_cancelled": 409,
    "cancelled": 409,
}
"""HTTP status by an operation's error code. All others are 502: the host was reached, but the command failed."""


def status_of(error: errors.MoorageError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, errors.OperationFailedError):
        return _OPERATION_STATUS.get(error.code, 502)
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def from_error(error: errors.MoorageError, request_id: str) -> web.Response:
    """Return the problem document of a MoorageError."""
    extra: dict[str, Any] = {}
    if isinstance(error, errors.InvalidError):
        extra["errors"] = [{"field": field, "message": message} for field, message in error.errors.items()]
    if isinstance(error, errors.OperationInProgressError | errors.StopWaitsError):
        extra["operationId"] = error.operation_id
    if isinstance(error, errors.OperationFailedError):
        extra |= {"output": error.output, "operationId": error.operation_id}
    response = problem(status_of(error), error.code, error.sentence, request_id, extra)
    if isinstance(error, errors.TooManyRequestsError):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def problem(
    status: int, code: str, sentence: str, request_id: str, extra: dict[str, Any] | None = None
) -> web.Response:
    """Return a problem document; `error` repeats the sentence, because dashboards show that field."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": sentence,
        "code": code,
        "requestId": request_id,
        "error": sentence,
        **(extra or {}),
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    body = json.dumps(document).encode()
    response = web.Response(body=body, status=status, content_type=CONTENT_TYPE, headers=headers)
    response[CODE] = code
    return response
