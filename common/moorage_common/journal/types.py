"""The input and output types of the journal."""

import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

SPEC_BYTES = 1 << 16
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"[a-z0-9_]+")


def check_id(operation_id: str) -> None:
    """Raise ValueError unless it is a UUID in its canonical form."""
    try:
        canonical = str(uuid.UUID(operation_id))
    except (ValueError, AttributeError, TypeError):
        canonical = None
    if canonical != operation_id:
        raise ValueError("an operation's id is a UUID in canonical form")


def check_code(code: str) -> None:
    """Raise ValueError unless it is one word in snake_case."""
    if not _CODE.fullmatch(code):
        raise ValueError("a code is one word in snake_case")


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """The order was refused and is buried: it never runs. `str()` is one sentence, `code` a stable word."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Launch(StrEnum):
    """The outcome of `launch`: the command was started, the operation is running already, or it has ended."""

    STARTED = "started"
    ATTACHED = "attached"
    ENDED = "ended"


class State(StrEnum):
    """The state of an operation. LOST: it began, its result is unknown. BURIED: it never runs."""

    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"
    BURIED = "buried"


class CancelOutcome(StrEnum):
    """The outcome of a cancel. SIGNALLED includes a command that is about to begin: it ends before it does anything."""

    SIGNALLED = "signalled"
    ALREADY_ENDED = "already_ended"
    BURIED = "buried"


@dataclass(frozen=True, slots=True)
class Order:
    """A command to run as the operation `operation_id`.

    `spec` (64 KiB of JSON at most) and `argv` show in the host's process list: no secrets there. `environment` is the
    whole environment of the command, except that PWD is always `directory`. The second lock is for `app_directory`
    (its symlinks resolved), the third for `project`. Raises ValueError for an invalid order.
    """

    operation_id: str
    spec: Mapping[str, object]
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    app_directory: str
    project: str | None

    def __post_init__(self) -> None:
        """Validate the order."""
        check_id(self.operation_id)
        if not self.argv or not self.argv[0] or self.argv[0].startswith("-"):
            raise ValueError("the command is empty or begins with a dash")
        if not (self.directory.startswith("/") and self.app_directory.startswith("/")):
            raise ValueError("the directories of an order are absolute paths")
        if any("\0" in text for text in (*self.argv, *self.environment.values(), self.directory, self.app_directory)):
            raise ValueError("an order can't hold a NUL character")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name) or name.startswith("mj_"):
                raise ValueError(f"{name!r} can't be the name of a variable")
        if len(json.dumps(dict(self.spec))) > SPEC_BYTES:
            raise ValueError("the specification of the order is too long")


@dataclass(frozen=True, slots=True)
class Record:
    """The journal's record of an operation.

    `exit_code` is None except for EXITED; 128 + N stands for signal N. `length` is the output's in bytes, so far or
    at the end. `cancelled_by` is empty if it wasn't cancelled; `code` and `reason` say why it is BURIED.
    """

    operation_id: str
    state: State
    spec: Mapping[str, object]
    exit_code: int | None
    length: int
    cancelled_by: str
    code: str
    reason: str


Guard = Callable[[], Awaitable[Refused | None]]
"""Decides, while all locks of the operation are held, whether the command may run."""
