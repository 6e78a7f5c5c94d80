"""The kinds of replies: immediate, accepted, and a stream. Errors are raised, see `problems`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pydantic import BaseModel

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.sse import Events, Stream

MOST_A_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Raw:
    """A body as bytes, and its media type."""

    data: bytes
    content_type: str


Body = BaseModel | Sequence[BaseModel] | Raw | Stream


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: a body (models are sent as JSON), its status and headers."""

    body: Body
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def ok(body: Body, status: int = 200) -> Reply:
    """Reply with a body."""
    return Reply(body, status)


def accepted(operation: BaseModel, operation_id: object) -> Reply:
    """Reply 202 for an operation that continues, with its Location."""
    return Reply(operation, 202, {"Location": f"/api/operations/{operation_id}"})


def stream(events: Events, held: ExitStack) -> Reply:
    """Reply with server-sent events; `held` is closed at their end. Errors with a status must be raised before."""
    return Reply(Stream(events, held.pop_all()))


def page(call: Call, reply: Reply) -> Reply:
    """Apply `?limit=&offset=` to a list, unless already done; X-Total-Count is the length of the whole list."""
    if not isinstance(reply.body, Sequence) or "X-Total-Count" in reply.headers:
        return reply
    count = len(reply.body)
    offset = call.query_number("offset", 0, 0, 10**9)
    limit = call.query_number("limit", max(count, 1), 1, max(count, MOST_A_PAGE))
    headers = {"X-Total-Count": str(count), **reply.headers}
    return Reply(reply.body[offset : offset + limit], reply.status, headers)
