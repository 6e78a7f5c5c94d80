"""The three kinds of answer: now, later, and an error (which is raised, see `problems`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

Body = BaseModel | Sequence[BaseModel]


@dataclass(frozen=True, slots=True)
class Reply:
    """A body to be sent as JSON, with its status and headers."""

    body: Body
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def now(body: Body, status: int = 200) -> Reply:
    """Answer with a body."""
    return Reply(body, status)


def later(operation: BaseModel, operation_id: object) -> Reply:
    """Answer 202: it goes on, and this is where to look."""
    return Reply(operation, 202, {"Location": f"/api/operations/{operation_id}"})
