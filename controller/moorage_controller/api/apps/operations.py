"""Operations over HTTP: their records, and their live output."""

import re
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from itertools import pairwise

from moorage_common.compose.output import readable
from moorage_common.untrusted import cut_at

from moorage_controller.api.convert import operation_out, operation_shown_out
from moorage_controller.api.http.call import Call, to_json
from moorage_controller.api.http.replies import MOST_A_PAGE, Reply, ok, stream
from moorage_controller.api.http.sse import Event, Events
from moorage_controller.auth.stream_shares import Kind
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.output import Piece

_MOST_OFFSET = 10**15
_OFFSET = re.compile(r"[0-9]{1,15}")
_LONGEST_LINE = 64 * 1024


async def list_operations(call: Call) -> Reply:
    """GET /api/operations."""
    found, total = await call.services.operations.search(
        call.query_id("appId"),
        call.query_id("serverId"),
        call.query_word("state"),
        call.query_number("limit", 200, 1, MOST_A_PAGE),
        call.query_number("offset", 0, 0, 10**9),
    )
    return Reply([operation_out(o) for o in found], headers={"X-Total-Count": str(total)})


async def get_operation(call: Call) -> Reply:
    """GET /api/operations/{id}."""
    operation = await call.services.operations.get(call.id())
    return ok(operation_shown_out(operation, await call.services.outputs.text(operation.id)))


async def follow_output(call: Call) -> Reply:
    """GET /api/operations/{id}/output: stream the output, one event per line, from the beginning or an offset.

    `id` is the offset in bytes after the line, the same on the host and on every controller, so an interrupted browser
    resumes by itself. The last event is `done`, with the operation as its data.
    """
    operation = await call.services.operations.get(call.id())
    after = call.query_number("after", 0, 0, _MOST_OFFSET)
    if _OFFSET.fullmatch(call.last_event_id):
        after = int(call.last_event_id)
    with ExitStack() as held:
        held.enter_context(call.services.stream_shares.of_user(Kind.OUTPUT, call.principal.user_id))
        return stream(_lines(call.services.outputs.follow(operation.id, after), after), held)


async def cancel_operation(call: Call) -> Reply:
    """POST /api/operations/{id}/cancel."""
    return ok(operation_out(await call.services.operations.cancel(call.id(), call.actor)))


async def _lines(items: AsyncGenerator[Piece | Operation, None], after: int) -> Events:
    lines = _Lines(after)
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Piece):
                events = lines.read(item)
            else:
                events = lines.rest()
                events.append(Event(to_json(operation_out(item)), id=str(lines.offset), name="done"))
            if events:
                yield events


class _Lines:
    """Converts pieces of output to events; a line repeated by Compose is one event."""

    def __init__(self, after: int) -> None:
        self.offset = after
        """The offset after the last complete line."""
        self._rest = b""
        self._last = ""

    def read(self, piece: Piece) -> list[Event]:
        """Return the events of all lines that are now complete."""
        events = []
        missing = piece.start - self.offset - len(self._rest)
        if missing > 0:
            events += self.rest()
            self.offset = piece.start
            events.append(Event(f"[{missing} bytes of output are not kept and left out here]", id=str(self.offset)))
        *whole, self._rest = (self._rest + piece.data).split(b"\n")
        for line in whole:
            events += self._event(self._cut(line, events), newline=1)
        self._rest = self._cut(self._rest, events)
        return events

    def rest(self) -> list[Event]:
        """Return the events of an unterminated last line."""
        line, self._rest = self._rest, b""
        return self._event(line)

    def _cut(self, line: bytes, events: list[Event]) -> bytes:
        """Split a very long line into events at character boundaries; return the last part."""
        while len(line) > _LONGEST_LINE:
            end = cut_at(line, _LONGEST_LINE)
            self._last = ""
            events += self._event(line[:end])
            line = line[end:]
            self._last = ""
        return line

    def _event(self, line: bytes, *, newline: int = 0) -> list[Event]:
        self.offset += len(line) + newline
        texts = readable(line.decode(errors="replace"))
        texts = [text for before, text in pairwise([self._last, *texts]) if text != before]
        if not texts:
            return []
        self._last = texts[-1]
        # A reader interrupted between two texts of one line reads that line again.
        return [*(Event(text) for text in texts[:-1]), Event(texts[-1], id=str(self.offset))]
