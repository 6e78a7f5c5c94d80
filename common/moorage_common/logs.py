"""What the containers of an app write, read by the Engine's own API, once or for as long as somebody listens."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from operator import attrgetter
from urllib.parse import quote, urlencode

from moorage_common.compose_output import printable
from moorage_common.engine_http import Dial, EngineProblemError, Talk, answering
from moorage_common.states import ContainerState

_LONGEST = 16 * 1024
_MOST_BYTES = 8 << 20
_BATCH_LINES = 500
_ANSWER_SECONDS = 10.0
_READ_SECONDS = 60.0
_GATHER_SECONDS = 0.1
"""How long lines are gathered before they are told: containers' lines come on streams of their own, and are sorted."""
_LOOK_SECONDS = 2.0
"""How often to look for containers that were started or made meanwhile."""
_HEADER = 8


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
        newest = _Newest()
        for container in containers:
            async with aclosing(self.of(container, self.wanted.tail, self.wanted.since, follow=False)) as batches:
                kept = _Newest()
                async for batch in batches:
                    kept.add(batch)
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
                about = await talk.get(f"/containers/{name}/json")
                if about is None:
                    return  # gone meanwhile
                status = await talk.ask(f"/containers/{name}/logs?{urlencode(query)}")
            parts = Parts(tty=about["Config"]["Tty"])
            async with aclosing(talk.body()) as body:
                if status != HTTPStatus.OK:
                    answer = b"".join([data async for data in body]).decode(errors="replace")
                    yield [_remark(container.name, container.service, f"its log can't be read: {answer.strip()}")]
                    return
                async for data in body:
                    lines = [
                        LogLine(time, container.name, container.service, text)
                        for time, text in parts.take(data)
                        if time > since
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
            self._size += len(line.text)
        while self._size > _MOST_BYTES:
            self._size -= len(self.lines.popleft().text)
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
        self._lines: asyncio.Queue[list[LogLine]] = asyncio.Queue(64)

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
                while not self._lines.empty():
                    batch += self._lines.get_nowait()
                yield sorted(batch, key=attrgetter("time"))
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


class Parts:
    """Takes the Engine's stream of a log apart: lines with their times.

    Without a terminal each entry has a header of 8 bytes (its last four are the length); with one they are plain lines.
    """

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._rest = b""

    def take(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Yield time and text of each line that is whole now; a very long one in pieces of the same time."""
        self._rest += data
        for entry in self._lines() if self._tty else self._frames():
            time, _, text = entry.decode(errors="replace").partition(" ")
            shown = printable(text.rstrip("\r\n"))
            for n in range(0, max(len(shown), 1), _LONGEST):
                yield time, shown[n : n + _LONGEST]

    def _lines(self) -> list[bytes]:
        *whole, self._rest = self._rest.split(b"\n")
        return whole

    def _frames(self) -> Iterator[bytes]:
        position = 0
        while len(self._rest) - position >= _HEADER:
            end = position + _HEADER + int.from_bytes(self._rest[position + 4 : position + _HEADER])
            if len(self._rest) < end:
                break
            yield self._rest[position + _HEADER : end]
            position = end
        self._rest = self._rest[position:]


def _seconds(time: str) -> int:
    """Return a line's time in whole epoch seconds: what is older than wanted is left out afterwards."""
    return int(datetime.fromisoformat(time).timestamp())


def _remark(container: str, service: str, text: str) -> LogLine:
    return LogLine("", container, service, f"[{text}]")
