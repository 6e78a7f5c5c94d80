"""The kinds of answer: now, later, a stream, and an error (which is raised, see `problems`)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pydantic import BaseModel

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.sse import Events, Stream

MOST_A_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that are ready, and their media type."""

    data: bytes
    content_type: str


Body = BaseModel | Sequence[BaseModel] | Raw | Stream


@dataclass(frozen=True, slots=True)
class Reply:
    """A body to be sent as JSON, with its status and headers."""

    body: Body
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def ok(body: Body, status: int = 200) -> Reply:
    """Answer with a body."""
    return Reply(body, status)


def accepted(operation: BaseModel, operation_id: object) -> Reply:
    """Answer 202: it goes on, and this is where to look."""
    return Reply(operation, 202, {"Location": f"/api/operations/{operation_id}"})


def stream(events: Events, held: ExitStack) -> Reply:
    """Answer with server-sent events; `held` is closed at their end. What deserves a status is to be refused before."""
    return Reply(Stream(events, held.pop_all()))


def page(call: Call, reply: Reply) -> Reply:
    """Cut from a list what `?limit=&offset=` ask for, unless that was done; X-Total-Count tells the whole."""
    if not isinstance(reply.body, Sequence) or "X-Total-Count" in reply.headers:
        return reply
    count = len(reply.body)
    offset = call.query_number("offset", 0, 0, 10**9)
    limit = call.query_number("limit", max(count, 1), 1, max(count, MOST_A_PAGE))
    headers = {"X-Total-Count": str(count), **reply.headers}
    return Reply(reply.body[offset : offset + limit], reply.status, headers)
