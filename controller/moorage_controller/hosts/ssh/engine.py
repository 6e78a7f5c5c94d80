"""Client of the Docker Engine's HTTP API over a stream through the SSH connection."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

from moorage_common.docker.containers import EVENTS, PROJECT, Container, of_inspection, state_word
from moorage_common.docker.engine_http import (
    Dial,
    EngineClosedError,
    EngineConnection,
    EngineProblemError,
    engine_timeout,
    understanding,
)
from moorage_common.untrusted import LIMITS, Lines, UntrustedError, at_most, clean_line, key_id, number

_CALL_SECONDS = 10.0
_STREAMS = 4
"""Concurrent streams for inspecting many containers, if the connection to the Engine allows them."""
_EVENT_ID = re.compile(rb'"(?:id|ID)":\s*"([0-9a-f]{12,64})"')

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Facts from the Engine; `time` is its clock, in epoch seconds."""

    version: str
    running_containers: int
    time: int


class Engine:
    """The Engine on the host. Every method raises EngineProblemError, ContactLostError."""

    def __init__(self, dial: Dial, resolve: "Resolve") -> None:
        self.dial = dial
        self._resolve = resolve
        self.streams = _STREAMS
        """Limit of concurrent streams, not counting the event stream."""

    async def facts(self, *, seconds: float = _CALL_SECONDS) -> EngineFacts:
        """Fetch the version, the number of running containers (all, not only Compose's) and the time."""
        (info,) = await self._get(["/info"], _facts, seconds=seconds)
        if info is None:
            raise EngineProblemError("The Docker Engine says nothing of itself: see on the host what it is.")
        return info

    async def states(self) -> dict[str, str]:
        """Fetch only the states of all containers of Compose projects, by id: one cheap call."""
        return dict(await self._rows())

    async def containers(self) -> dict[str, Container]:
        """Inspect all containers of Compose projects, by id: only inspection shows health and exit codes."""
        return await self.inspected([container_id for container_id, _ in await self._rows()])

    async def inspected(self, ids: Sequence[str]) -> dict[str, Container]:
        """Inspect some containers, by id; those that are gone, or of no Compose project, are left out."""
        paths = [f"/containers/{quote(container_id, safe='')}/json" for container_id in ids]
        shares = [share for n in range(self.streams) if (share := paths[n :: self.streams])]
        told = await asyncio.gather(*(self._get(share, _unresolved, inspects=True) for share in shares))
        found = [container for share in told for one in share if one is not None for container in one]
        real = await self._resolve([path for c in found for path in (c.directory, *c.config_files)])
        return {
            c.state.id: replace(
                c, directory=real[c.directory], config_files=tuple(real[file] for file in c.config_files)
            )
            for c in found
        }

    async def events(self, since: int) -> AsyncGenerator[str, None]:
        """Yield the container id of each event, from a time of the Engine (epoch seconds) on.

        The first item is empty and means that the stream is open.
        """
        filters = json.dumps({"type": ["container"], "event": list(EVENTS)})
        path = f"/events?{urlencode({'since': since, 'filters': filters})}"
        lines = Lines(LIMITS.engine_event)
        async with self.dial() as stream:
            talk = EngineConnection(stream)
            async with engine_timeout(_CALL_SECONDS):
                await talk.ask(path)
            yield ""
            async with aclosing(talk.body()) as body:
                async for data in body:
                    for line in filter(None, lines.take(data)):
                        found = _EVENT_ID.search(line)
                        # Very long labels can hide the container's id; each observation fetches all states anyway.
                        yield found[1].decode() if found else ""
        raise EngineClosedError("The Docker Engine closed the stream of its events: see on the host that it runs.")

    async def _rows(self) -> list[tuple[str, str]]:
        """Return id and state of all containers of Compose projects."""
        filters = urlencode({"all": 1, "filters": json.dumps({"label": [PROJECT]})})
        (rows,) = await self._get([f"/containers/json?{filters}"], _states)
        return rows or []

    async def _get(
        self, paths: Sequence[str], read: Callable[[Any], T], *, seconds: float = _CALL_SECONDS, inspects: bool = False
    ) -> list[T | None]:
        """Send GET requests one by one on one stream; the result is None for an object that the Engine doesn't know.

        Each response is passed to `read` immediately, so that only the needed part stays in memory.
        """
        limit = LIMITS.engine_inspection if inspects else LIMITS.engine_answer
        answers: list[T | None] = []
        async with self.dial() as stream:
            talk = EngineConnection(stream)
            for path in paths:
                async with engine_timeout(seconds):
                    told = await talk.get(path, limit)
                with understanding():
                    answers.append(None if told is None else read(told))
        return answers


class Resolve(Protocol):
    """Resolves paths on the host."""

    async def __call__(self, paths: list[str]) -> Mapping[str, str]:
        """Return the real path of each path. Raises ContactLostError."""


def _facts(info: Mapping[str, Any]) -> EngineFacts:
    moment = datetime.fromisoformat(info["SystemTime"])
    running = number(info["ContainersRunning"], 0, LIMITS.count)
    return EngineFacts(clean_line(info["ServerVersion"], LIMITS.version), running, int(moment.timestamp()))


def _states(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    at_most("containers", len(rows), LIMITS.containers)
    return [(key_id(row["Id"]), state_word(row["State"])) for row in rows]


def _unresolved(about: Mapping[str, Any]) -> Sequence[Container]:
    """Read a container with its directory as labelled; empty if it isn't Compose's or is invalid."""
    try:
        found = of_inspection(about, str)
    except UntrustedError:
        return ()
    return () if found is None else (found,)
