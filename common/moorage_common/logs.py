"""What the containers of an app write, read by the Engine's own API, once or for as long as somebody listens."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from operator import attrgetter
from urllib.parse import quote, urlencode

from moorage_common.engine_http import Dial, EngineProblemError, Talk, answering, understanding
from moorage_common.states import ContainerState
from moorage_common.untrusted import LIMITS, ByteBudget, Pace, UntrustedError, clean_line, clean_text

_MOST_BYTES = 8 << 20
_PIECE_BYTES = 64 * 1024
"""A line, or an entry of the Engine's, that is longer is told in pieces before its end came."""
_BATCH_LINES = 500
_ANSWER_SECONDS = 10.0
_READ_SECONDS = 60.0
_GATHER_SECONDS = 0.1
"""How long lines are gathered before they are told: containers' lines come on streams of their own, and are sorted."""
_LOOK_SECONDS = 2.0
"""How often to look for containers that were started or made meanwhile."""
_HEADER = 8
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")


class UnknownServiceError(Exception):
    """The app has no container of that service; `str()` is a sentence."""


class TooManyLogsError(Exception):
    """More streams than this host allows at once; `str()` is a sentence."""

    def __init__(self) -> None:
        super().__init__(
            "No more logs of this host can be followed at once: end one, ask for one service alone, or don't follow."
        )


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; `time` is as the Engine wrote it (RFC 3339, nanoseconds), empty for a remark of ours."""

    time: str
    container: str
    service: str
    text: str

    @property
    def cost(self) -> int:
        """About how many bytes it takes, wherever it is kept."""
        text = self.text
        return LIMITS.line_cost + (len(text) if text.isascii() else len(text.encode()))


@dataclass(frozen=True, slots=True)
class LogsWanted:
    """Which lines: of one service or all (empty), the last `tail` of each container, and only those after `since`.

    `since` is a line's `time`, empty for all.
    """

    service: str = ""
    tail: int = 200
    since: str = ""
    follow: bool = False


class Budget:
    """How many streams may be followed at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def has(self, count: int) -> bool:
        """Whether so many more may be."""
        return self.taken + count <= self.limit


Containers = Callable[[], Awaitable[Sequence[ContainerState]]]
"""Returns an app's containers."""


@dataclass(frozen=True, slots=True)
class Logs:
    """Reads the logs of one app's containers.

    `look` asks the Engine now, once; `known` is asked again and again while logs are followed, and has to be cheap.
    """

    dial: Dial
    look: Containers
    known: Containers
    wanted: LogsWanted
    budget: Budget
    pace: Pace = field(default_factory=Pace)

    async def lines(self) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of lines. Raises UnknownServiceError, TooManyLogsError, EngineProblemError."""
        found = self.chosen(await self.look())
        if self.wanted.service and not found:
            raise UnknownServiceError(f"The app has no container of a service {self.wanted.service}.")
        if not self.wanted.follow:
            async with answering(_READ_SECONDS):
                lines = await self._read_all(found)
            for n in range(0, len(lines), _BATCH_LINES):
                yield lines[n : n + _BATCH_LINES]
            return
        if not self.budget.has(len(found)):
            raise TooManyLogsError
        async with aclosing(_Following(self, found).batches()) as batches:
            async for batch in batches:
                yield batch

    def chosen(self, containers: Sequence[ContainerState]) -> Sequence[ContainerState]:
        """Return those whose lines are wanted."""
        return [c for c in containers if self.wanted.service in {"", c.service}]

    async def _read_all(self, containers: Sequence[ContainerState]) -> list[LogLine]:
        """Return the lines of all in order; where they are too many, the newest, and a remark."""
        newest, budget = _Newest(), ByteBudget("A log", LIMITS.log_read)
        for container in containers:
            kept = _Newest()
            async with aclosing(self.of(container, self.wanted.tail, self.wanted.since, follow=False)) as batches:
                try:
                    async for batch in batches:
                        budget.take(sum(line.cost for line in batch))
                        kept.add(batch)
                except UntrustedError:
                    newest.merge(kept)
                    remark = _remark(container.name, container.service, "its log is too long: ask for fewer lines")
                    return [*newest.lines, remark]
            newest.merge(kept)
        if newest.left_out:
            return [_remark("", "", f"{newest.left_out} older lines are left out"), *newest.lines]
        return list(newest.lines)

    async def of(
        self, container: ContainerState, tail: int, since: str, *, follow: bool
    ) -> AsyncGenerator[list[LogLine], None]:
        """Yield batches of one container's lines; one remark where its log can't be read. Raises EngineProblemError."""
        name = quote(container.id, safe="")
        query: dict[str, str | int] = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow)}
        query |= {"tail": "all" if tail < 0 else tail, **({"since": _seconds(since)} if since else {})}
        async with self.dial() as stream:
            talk = Talk(stream)
            async with answering(_ANSWER_SECONDS):
                about = await talk.get(f"/containers/{name}/json", LIMITS.engine_inspection)
                if about is None:
                    return  # gone meanwhile
                status = await talk.ask(f"/containers/{name}/logs?{urlencode(query)}")
                if status != HTTPStatus.OK:
                    answer = clean_line((await talk.whole(LIMITS.script)).decode(errors="replace"), LIMITS.sentence)
                    yield [_remark(container.name, container.service, f"its log can't be read: {answer}")]
                    return
            with understanding():
                parts = Parts(tty=bool(about["Config"]["Tty"]))
            async with aclosing(talk.body()) as body:
                async for data in body:
                    entries = parts.take(data)
                    while some := list(islice(entries, _BATCH_LINES)):
                        # Those that aren't wanted take their time, too.
                        await self.pace.take(LIMITS.line_cost * len(some))
                        lines = [
                            LogLine(time, container.name, container.service, text)
                            for time, text in some
                            if not since or time > since
                        ]
                        if lines:
                            yield lines


class _Newest:
    """The newest lines, as many as fit into a reply."""

    def __init__(self) -> None:
        self.lines: deque[LogLine] = deque()
        self.left_out = 0
        self._size = 0

    def add(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            self.lines.append(line)
            self._size += line.cost
        while self._size > _MOST_BYTES:
            self._size -= self.lines.popleft().cost
            self.left_out += 1

    def merge(self, other: "_Newest") -> None:
        both = sorted([*self.lines, *other.lines], key=attrgetter("time"))
        self.lines.clear()
        self._size = 0
        self.left_out += other.left_out
        self.add(both)


class _Following:
    """Follows containers, those that come later too, and through restarts."""

    def __init__(self, logs: Logs, first: Sequence[ContainerState]) -> None:
        self._logs = logs
        self._first = first
        self._seen: dict[str, str] = {}
        self._known: set[str] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._unreadable: set[str] = set()
        self._lines = _Waiting()

    async def batches(self) -> AsyncGenerator[Sequence[LogLine], None]:
        looking = asyncio.create_task(self._look_for_more())
        for container in self._first:
            self._follow(container, self._logs.wanted.tail, self._logs.wanted.since)
        try:
            while True:
                coming = asyncio.create_task(self._lines.get())
                try:
                    await asyncio.wait({coming, looking}, return_when=asyncio.FIRST_COMPLETED)
                    if looking.done():
                        looking.result()
                    batch = await coming
                finally:
                    coming.cancel()
                await asyncio.sleep(_GATHER_SECONDS)
                yield sorted(batch + self._lines.take(), key=attrgetter("time"))
        finally:
            tasks = [looking, *self._following.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_for_more(self) -> None:
        """Follow what runs and isn't followed; what ended is followed again when it runs again."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for container in self._logs.chosen(await self._logs.known()):
                left_alone = container.id in self._following or container.id in self._unreadable
                if container.alive and not left_alone and self._logs.budget.has(1):
                    self._follow(container, -1, self._last_seen(container))

    def _last_seen(self, container: ContainerState) -> str:
        if container.id not in self._known:
            return self._logs.wanted.since
        # It said nothing before it was started again.
        started = container.started_at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z") if container.started_at else ""
        return self._seen.get(container.id, started)

    def _follow(self, container: ContainerState, tail: int, since: str) -> None:
        self._logs.budget.taken += 1
        self._known.add(container.id)
        task = self._following[container.id] = asyncio.create_task(self._read(container, tail, since))

        def ended(_: asyncio.Task[None]) -> None:
            self._logs.budget.taken -= 1
            self._following.pop(container.id, None)

        task.add_done_callback(ended)

    async def _read(self, container: ContainerState, tail: int, since: str) -> None:
        try:
            async with aclosing(self._logs.of(container, tail, since, follow=True)) as batches:
                async for batch in batches:
                    if batch[-1].time:
                        self._seen[container.id] = batch[-1].time
                    else:
                        self._unreadable.add(container.id)
                    await self._lines.put(batch)
        except EngineProblemError:
            pass  # whoever looks for more hears of it as well, and says so


class _Waiting:
    """Lines that nobody took yet, of all containers: so many bytes, then whoever adds waits."""

    def __init__(self) -> None:
        self._lines: list[LogLine] = []
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, lines: list[LogLine]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < LIMITS.log_waiting)
            self._lines += lines
            self._size += sum(line.cost for line in lines)
            self._changed.notify_all()

    async def get(self) -> list[LogLine]:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._lines))
            lines = self.take()
            self._changed.notify_all()
            return lines

    def take(self) -> list[LogLine]:
        """Return what there is just now; who waits for room goes on with the next `get`."""
        lines, self._lines, self._size = self._lines, [], 0
        return lines


class Parts:
    """Takes the Engine's stream of a log apart: lines with their times.

    Without a terminal each entry has a header of 8 bytes (its last four are the length); with one they are plain lines.
    An entry of whatever length takes as much time as it has bytes, and the memory of one piece.
    """

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._header = b""
        self._left = 0
        """Of the entry that is coming in, where its length is known."""
        self._entry = bytearray()
        self._time: str | None = None
        """Of the entry that is coming in; None before its first piece is told."""

    def take(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Yield time and text of each line that is whole now; a very long one in pieces of the same time."""
        for part, whole in self._lines(data) if self._tty else self._frames(data):
            self._entry += part
            if whole or len(self._entry) >= _PIECE_BYTES:
                yield from self._take_lines()
            if whole:
                self._time = None

    def _take_lines(self) -> Iterator[tuple[str, str]]:
        entry, self._entry = bytes(self._entry), bytearray()
        if self._time is None:
            found = _TIME.match(entry)
            self._time = found[1].decode() if found else ""
            entry = entry[found.end() :] if found else entry
        elif not entry:
            return  # the end of what was told already
        # By lines of ours, which no limit of a text cuts.
        text = entry.decode(errors="replace").rstrip("\r\n")
        for n in range(0, max(len(text), 1), LIMITS.log_text):
            yield self._time, clean_text(text[n : n + LIMITS.log_text], LIMITS.log_text)

    @staticmethod
    def _lines(data: bytes) -> Iterator[tuple[bytes, bool]]:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            yield data[start:end], True
            start = end + 1
        yield data[start:], False

    def _frames(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        position = 0
        while position < len(data):
            if len(self._header) < _HEADER:
                taken = data[position : position + _HEADER - len(self._header)]
                self._header += taken
                position += len(taken)
                if len(self._header) < _HEADER:
                    return
                self._left = int.from_bytes(self._header[4:])
            part = data[position : position + self._left]
            position += len(part)
            self._left -= len(part)
            if not self._left:
                self._header = b""
            yield part, not self._left


def _seconds(time: str) -> int:
    """Return a line's time in whole epoch seconds: what is older than wanted is left out afterwards."""
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except (ValueError, OverflowError):
        return 0  # of a host that says what is no time: all of it


def _remark(container: str, service: str, text: str) -> LogLine:
    return LogLine("", container, service, f"[{text}]")
