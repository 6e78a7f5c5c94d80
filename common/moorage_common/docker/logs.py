"""The logs of an app's containers, read through the Engine's API, once or followed."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from operator import attrgetter
from urllib.parse import quote, urlencode

from moorage_common.docker.engine_http import Dial, EngineConnection, EngineProblemError, engine_timeout, understanding
from moorage_common.docker.log_parts import Parts
from moorage_common.docker.states import ContainerState
from moorage_common.untrusted import LIMITS, ByteBudget, Pace, UntrustedError, clean_line

_MOST_BYTES = 8 << 20
_BATCH_LINES = 500
_MORE_ENTRIES = 64
"""Additional entries that are requested from the Engine if the last lines are long."""
_NO_BUDGET = ByteBudget("A log", LIMITS.int64)
_TOO_LONG = "its log is too long: ask for fewer lines"
_ANSWER_SECONDS = 10.0
_READ_SECONDS = 60.0
_GATHER_SECONDS = 0.1
"""How long lines are collected before they are sent: each container has its own stream, and they are sorted."""
_POLL_SECONDS = 2.0
"""Interval of the search for containers started or created meanwhile."""


class UnknownServiceError(Exception):
    """The app has no container of that service; `str()` is a sentence."""


class TooManyLogsError(Exception):
    """More concurrent streams than this host allows; `str()` is a sentence."""

    def __init__(self) -> None:
        super().__init__(
            "No more logs of this host can be followed at once: end one, ask for one service alone, or don't follow."
        )


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; `time` is the Engine's text (RFC 3339, nanoseconds), empty for one of our own remarks."""

    time: str
    container: str
    service: str
    text: str

    @property
    def cost(self) -> int:
        """Its approximate size in bytes, in any buffer."""
        text = self.text
        return LIMITS.line_cost + (len(text) if text.isascii() else len(text.encode()))


@dataclass(frozen=True, slots=True)
class LogsWanted:
    """The requested lines: of one service or all (empty), the last `tail` of each container, only those after `since`.

    `since` is a line's `time`, empty for all.
    """

    service: str = ""
    tail: int = 200
    since: str = ""
    follow: bool = False


class Budget:
    """The limit of concurrently followed streams."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def has(self, count: int) -> bool:
        """Whether that many more are allowed."""
        return self.taken + count <= self.limit


Containers = Callable[[], Awaitable[Sequence[ContainerState]]]
"""Returns an app's containers."""


@dataclass(frozen=True, slots=True)
class Logs:
    """Reads the logs of one app's containers.

    `look` queries the Engine, once; `known` is called repeatedly while logs are followed, and has to be cheap.
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
            async with engine_timeout(_READ_SECONDS):
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
        """Return the containers whose lines are requested."""
        return [c for c in containers if self.wanted.service in {"", c.service}]

    async def _read_all(self, containers: Sequence[ContainerState]) -> list[LogLine]:
        """Return the lines of all containers in order; if they are too many, the newest, and a remark."""
        newest, budget = _Newest(), ByteBudget("A log", LIMITS.log_read)
        for container in containers:
            kept, too_long = _Newest(), False
            try:
                await self._last(container, kept, budget)
            except UntrustedError:
                too_long = True
            newest.merge(kept)
            if too_long:
                return [*newest.lines, _remark(container.name, container.service, _TOO_LONG)]
        if newest.left_out:
            return [_remark("", "", f"{newest.left_out} older lines are left out"), *newest.lines]
        return list(newest.lines)

    async def _last(self, container: ContainerState, kept: "_Newest", budget: ByteBudget) -> int:
        """Keep the last lines of a container, and return the number of Engine entries requested for them.

        The Engine counts entries, of which a long line has several: if it returned too few lines, more are requested.
        Raises EngineProblemError; UntrustedError past the budget.
        """
        tail, since = self.wanted.tail, self.wanted.since
        for entries in (tail + 1, tail * 8 + _MORE_ENTRIES, tail * 64 + _MORE_ENTRIES) if tail > 0 else (tail,):
            kept.begin(tail)
            seen = _Seen()
            async with aclosing(self._entries(container, entries, since, seen, budget)) as batches:
                async for batch in batches:
                    budget.take(LIMITS.line_cost * len(batch))
                    kept.add(batch)
            # The first line of the excess ones may be only the end of a line.
            if seen.entries < entries or seen.lines > tail:
                break
        kept.after(since)
        return entries

    async def follow(self, container: ContainerState, tail: int, since: str) -> AsyncGenerator[list[LogLine], None]:
        """Yield batches of one container's lines as they come; one remark if its log can't be read.

        Raises EngineProblemError; UntrustedError if its last lines can't be found within the budget.
        """
        entries, begin = tail, ""
        if tail > 0:
            kept = _Newest(texts=False)
            entries = await self._last(container, kept, ByteBudget("A log", LIMITS.log_read))
            begin = kept.lines[0].time if kept.lines else ""
        async with aclosing(self._entries(container, entries, since, _Seen())) as batches:
            async for batch in batches:
                if lines := [x for x in batch if not x.time or (x.time >= begin and (not since or x.time > since))]:
                    yield lines

    async def _entries(
        self, container: ContainerState, tail: int, since: str, seen: "_Seen", budget: ByteBudget | None = None
    ) -> AsyncGenerator[list[LogLine], None]:
        """Yield the lines of the last entries, or of all (negative); without a budget follow the log.

        Raises EngineProblemError; UntrustedError past the budget.
        """
        too_long: UntrustedError | None = None
        name = quote(container.id, safe="")
        query: dict[str, str | int] = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(budget is None)}
        query |= {"tail": "all" if tail < 0 else tail, **({"since": _seconds(since)} if since else {})}
        async with self.dial() as stream:
            talk = EngineConnection(stream)
            async with engine_timeout(_ANSWER_SECONDS):
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
                    try:
                        (budget or _NO_BUDGET).take(len(data))
                    except UntrustedError as error:
                        too_long = error
                        break
                    found = parts.take(data)
                    while lines := _lines(container, islice(found, _BATCH_LINES)):
                        # Lines that are filtered out later cost time, too.
                        await self.pace.take(LIMITS.line_cost * len(lines))
                        seen.lines, seen.entries = seen.lines + len(lines), parts.entries
                        yield lines
            if rest := _lines(container, parts.rest()):
                seen.lines, seen.entries = seen.lines + len(rest), parts.entries
                yield rest
        if too_long is not None:
            raise too_long  # only here: inside, `dial` would report it as an error of the Engine


@dataclass(slots=True)
class _Seen:
    """The received counts of one container's log: the Engine's entries, and lines."""

    entries: int = 0
    lines: int = 0


class _Newest:
    """The newest lines, as many as fit into a reply; without their texts if only the number counts."""

    def __init__(self, *, texts: bool = True) -> None:
        self._texts = texts
        self.begin(-1)

    def begin(self, most: int) -> None:
        """Clear, and keep at most that many lines from now on; negative: only the limit of bytes."""
        self.lines: deque[LogLine] = deque()
        self.left_out = 0
        self._most = most
        self._size = 0

    def after(self, since: str) -> None:
        """Drop the lines that aren't after a time; remarks, which have no time, stay."""
        if since:
            kept = [line for line in self.lines if not line.time or line.time > since]
            self.lines = deque(kept)
            self._size = sum(line.cost for line in kept)

    def add(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            kept = line if self._texts else replace(line, text="")
            self.lines.append(kept)
            self._size += kept.cost
        while 0 <= self._most < len(self.lines):
            self._size -= self.lines.popleft().cost
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
    """Follows containers, including later ones, and across restarts."""

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
        """Follow running containers that aren't followed yet, including restarted ones."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            for container in self._logs.chosen(await self._logs.known()):
                left_alone = container.id in self._following or container.id in self._unreadable
                if container.alive and not left_alone and self._logs.budget.has(1):
                    self._follow(container, -1, self._last_seen(container))

    def _last_seen(self, container: ContainerState) -> str:
        if container.id not in self._known:
            return self._logs.wanted.since
        # It was followed and wrote nothing: its lines begin with this start.
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
            async with aclosing(self._logs.follow(container, tail, since)) as batches:
                async for batch in batches:
                    if batch[-1].time:
                        self._seen[container.id] = batch[-1].time
                    else:
                        self._unreadable.add(container.id)
                    await self._lines.put(batch)
        except EngineProblemError:
            pass  # the next query of the containers fails as well, and reports it
        except UntrustedError:
            self._unreadable.add(container.id)
            await self._lines.put([_remark(container.name, container.service, _TOO_LONG)])


class _Waiting:
    """The queue of lines of all containers; it is bounded in bytes, and `put` waits for room."""

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
        """Return the queued lines; a waiting `put` continues with the next `get`."""
        lines, self._lines, self._size = self._lines, [], 0
        return lines


def _seconds(time: str) -> int:
    """Return a line's time in whole epoch seconds; older lines of that second are filtered out afterwards."""
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except (ValueError, OverflowError):
        return 0  # the host sent an invalid time: read the whole log


def _lines(container: ContainerState, found: Iterable[tuple[str, str]]) -> list[LogLine]:
    return [LogLine(time, container.name, container.service, text) for time, text in found]


def _remark(container: str, service: str, text: str) -> LogLine:
    return LogLine("", container, service, f"[{text}]")
