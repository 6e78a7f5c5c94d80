"""The journal through a shell on its host (journal.sh): the calls, and parsers of their output."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from moorage_common.journal.files import WHO_BYTES, one_line, parse_exit
from moorage_common.journal.supervisor import script_text
from moorage_common.journal.types import SPEC_BYTES, Record, State, check_id
from moorage_common.untrusted import LIMITS, UntrustedError, parse_json

_LOOKS = frozenset({"running", "ended", "unknown"})


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one poll of an operation: `running`, `ended` or `unknown`, and the output from an offset on."""

    word: str
    data: bytes


def journal_text() -> str:
    """Return the shell functions that the calls need."""
    return script_text("records.sh", "journal.sh")


def look_call(root: str, operation_id: str, after: int, limit: int) -> str:
    """Return the call for the output from the byte offset `after` on, `limit` bytes at most. See `parse_outputs`."""
    check_id(operation_id)
    if after < 0 or limit < 0:
        raise ValueError("offset and limit of an output can't be negative")
    return f"(mj_look {shlex.quote(root)} {operation_id} {after} {limit})"


def parse_outputs(printed: bytes, count: int, limit: int) -> list[Look]:
    """Parse the output of that many look calls of `limit` bytes, one after the other.

    Raises ValueError if it is truncated or invalid.
    """
    looks, position = [], 0
    for _ in range(count):
        end = printed.index(b"\n", position)
        word, _, told = printed[position:end].decode(errors="replace").partition(" ")
        position, length = end + 1, int(told)
        if not 0 <= length <= limit or word not in _LOOKS:
            raise ValueError("a look at an operation can't be right")
        looks.append(Look(word, printed[position : position + length]))
        position += length
    return looks


def show_call(root: str, operation_id: str) -> str:
    """Return the call for the whole record of an operation. See `read_record`."""
    check_id(operation_id)
    return f"(mj_show {shlex.quote(root)} {operation_id})"


def read_record(operation_id: str, printed: bytes) -> Record | None:
    """Parse the output of a show call; None for an operation that was never started. Raises ValueError."""
    word, _, rest = printed.partition(b"\n")
    if word == b"unknown":
        return None
    parts: dict[str, bytes] = {}
    length = None
    while rest and length is None:
        head, _, rest = rest.partition(b"\n")
        name, _, count = head.decode(errors="replace").partition(" ")
        size = int(count)
        if not 0 <= size <= LIMITS.int64:
            raise ValueError("the record of the operation can't be right")
        if name == "out":
            length = size
        else:
            parts[name], rest = rest[:size], rest[size:]
    if length is None or word not in {b"running", b"ended"}:
        raise ValueError("the record of the operation broke off")
    return _record(operation_id, parts, length, running=word == b"running")


def cancel_call(root: str, operation_id: str, by: str) -> str:
    """Return the call that cancels; it prints a word of CancelOutcome, `not_allowed`, or `failed SENTENCE`."""
    check_id(operation_id)
    who = one_line(by).encode()[:WHO_BYTES].decode(errors="ignore")
    return f"(mj_cancel {shlex.quote(root)} {operation_id} {shlex.quote(who)})"


def clean_call(root: str, days: int) -> str:
    """Return the call that removes operations which ended more than that many days ago; it prints the ids."""
    return f"(mj_clean {shlex.quote(root)} {days})"


def _record(operation_id: str, parts: Mapping[str, bytes], length: int, *, running: bool) -> Record:
    found = None if running else parse_exit(parts.get("exit", b""))
    ended = State(found.ending) if found is not None else State.LOST
    state = State.RUNNING if running else ended
    code, _, reason = parts.get("reason", b"").decode(errors="replace").partition("\n")
    buried = state is State.BURIED
    return Record(
        operation_id=operation_id,
        state=state,
        spec=_spec(parts.get("spec", b"")),
        exit_code=found.exit_code if found is not None and state is State.EXITED else None,
        length=length if found is None else found.length,
        cancelled_by=parts.get("cancelled", b"").decode(errors="replace").strip(),
        code=code if buried else "",
        reason=reason.strip() if buried else "",
    )


def _spec(text: bytes) -> dict[str, object]:
    try:
        spec = parse_json(text or b"{}", SPEC_BYTES)
    except UntrustedError:
        return {}  # buried before its order was complete
    return spec if isinstance(spec, dict) else {}
