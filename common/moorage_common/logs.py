"""What the containers of an app write, read by the Engine's own API, once or for as long as somebody listens."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from operator import attrgetter
from typing import Any
from urllib.parse import quote, urlencode

from moorage_common.compose_output import printable
from moorage_common.engine_http import Dial, EngineProblemError, Talk
from moorage_common.states import ContainerState

_LONGEST = 16 * 1024
_MOST_BYTES = 8 << 20
_BATCH_LINES = 500
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
"""Looks at an app's containers now."""


class Logs:
    """Reads the logs of one app's containers."""

    def __init__(self, dial: Dial, containers: Containers, wanted: LogsWanted, budget: Budget) -> None:
        self._dial = dial
        self._containers = containers
        self._wanted = wanted
        self._budget = budget

    async def lines(self) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of lines. Raises UnknownServiceError, TooManyLogsError, EngineProblemError."""
        found = await self._chosen()
        if self._wanted.service and not found:
            raise UnknownServiceError(f"The app has no container of a service {self._wanted.service}.")
        if not self._wanted.follow:
            lines = await self._read_all(found)
            for n in range(0, len(lines), _BATCH_LINES):
                yield lines[n : n + _BATCH_LINES]
            return
        if not self._budget.has(len(found)):
            raise TooManyLogsError
        async with aclosing(_Following(self, found).batches()) as batches:
            async for batch in batches:
                yield batch

    async def _chosen(self) -> Sequence[ContainerState]:
        return [c for c in await self._containers() if self._wanted.service in {"", c.service}]

    async def _read_all(self, containers: Sequence[ContainerState]) -> list[LogLine]:
        """Return the lines of all in order; where they are too many, the newest, and a remark."""
        found: list[LogLine] = []
        for container in containers:
            async with aclosing(self.of(container, self._wanted.tail, self._wanted.since, follow=False)) as batches:
                kept: deque[LogLine] = deque()
                size = 0
                async for batch in batches:
                    kept.extend(batch)
                    size += sum(len(line.text) for line in batch)
                    while size > _MOST_BYTES:
                        size -= len(kept.popleft().text)
                found += kept
        found.sort(key=attrgetter("time"))
        size = 0
        for n, line in enumerate(reversed(found)):
            size += len(line.text)
            if size > _MOST_BYTES:
                return [_remark("", "", f"{len(found) - n} older lines are left out"), *found[len(found) - n :]]
        return found

    async def of(
        self, container: ContainerState, tail: int, since: str, *, follow: bool
    ) -> AsyncGenerator[list[LogLine], None]:
        """Yield batches of one container's lines; one remark where its log can't be read."""
        name = quote(container.id, safe="")
        query: dict[str, str | int] = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow)}
        query |= {"tail": "all" if tail < 0 else tail, **({"since": _seconds(since)} if since else {})}
        async with self._dial() as stream:
            talk = Talk(stream)
            about = await _json(talk, f"/containers/{name}/json")
            if about is None:
                return  # gone meanwhile
            parts = Parts(tty=about["Config"]["Tty"])
            status = await talk.ask(f"/containers/{name}/logs?{urlencode(query)}")
            async with aclosing(talk.body()) as body:
                if status != HTTPStatus.OK:
                    answer = b"".join([data async for data in body])
                    if status != HTTPStatus.NOT_FOUND:
                        yield [_remark(container.name, container.service, f"its log can't be read: {_said(answer)}")]
                    return
                async for data in body:
                    lines = [
                        LogLine(time, container.name, container.service, text)
                        for time, text in parts.take(data)
                        if time > since
                    ]
                    if lines:
                        yield lines


class _Following:
    """Follows containers, those that come later too, and through restarts."""

    def __init__(self, logs: Logs, first: Sequence[ContainerState]) -> None:
        self._logs = logs
        self._first = first
        self._wanted = logs._wanted  # noqa: SLF001 - a part of it
        self._budget = logs._budget  # noqa: SLF001 - same
        self._seen: dict[str, str] = {}
        self._known: set[str] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._unreadable: set[str] = set()
        self._lines: asyncio.Queue[list[LogLine]] = asyncio.Queue(64)

    async def batches(self) -> AsyncGenerator[Sequence[LogLine], None]:
        looking = asyncio.create_task(self._look_for_more())
        for container in self._first:
            self._follow(container, self._wanted.tail, self._wanted.since)
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
            for container in await self._logs._chosen():  # noqa: SLF001 - a part of it
                left_alone = container.id in self._following or container.id in self._unreadable
                if container.alive and not left_alone and self._budget.has(1):
                    self._follow(container, -1, self._last_seen(container))

    def _last_seen(self, container: ContainerState) -> str:
        if container.id not in self._known:
            return self._wanted.since
        # It said nothing before it was started again.
        started = container.started_at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z") if container.started_at else ""
        return self._seen.get(container.id, started)

    def _follow(self, container: ContainerState, tail: int, since: str) -> None:
        self._budget.taken += 1
        self._known.add(container.id)
        task = self._following[container.id] = asyncio.create_task(self._read(container, tail, since))

        def ended(_: asyncio.Task[None]) -> None:
            self._budget.taken -= 1
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


async def _json(talk: Talk, path: str) -> dict[str, Any] | None:
    status = await talk.ask(path)
    async with aclosing(talk.body()) as body:
        answer = b"".join([data async for data in body])
    if status == HTTPStatus.NOT_FOUND:
        return None
    if status != HTTPStatus.OK:
        raise EngineProblemError(f"The Docker Engine answered with an error: {_said(answer)}")
    told: dict[str, Any] = json.loads(answer)
    return told


def _said(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return "nothing"


def _seconds(time: str) -> int:
    """Return a line's time in whole epoch seconds: what is older than wanted is left out afterwards."""
    return int(datetime.fromisoformat(time).timestamp())


def _remark(container: str, service: str, text: str) -> LogLine:
    return LogLine("", container, service, f"[{text}]")
