"""The Docker Engine's own HTTP API, over a stream to it through the SSH connection: no command line to parse."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from moorage_common.containers import EVENTS, PROJECT, Container, named_directory, of_inspection
from moorage_common.engine_http import Dial, EngineProblemError, Talk, answering

_CALL_SECONDS = 10.0
_STREAMS = 4
"""How many at once to look at many containers, where the way to the Engine allows it."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the Engine says of itself; `time` is its clock, in epoch seconds."""

    version: str
    running_containers: int
    time: int


class Engine:
    """The Engine at the other end. Every method raises EngineProblemError, ContactLostError."""

    def __init__(self, dial: Dial, resolve: "Resolve") -> None:
        self.dial = dial
        self._resolve = resolve
        self.streams = _STREAMS
        """How many streams may be open at once, beside that of the events."""

    async def facts(self, *, seconds: float = _CALL_SECONDS) -> EngineFacts:
        """Ask version, running containers (all, not only Compose's) and time."""
        (info,) = await self._get(["/info"], seconds=seconds)
        moment = datetime.fromisoformat(info["SystemTime"])
        return EngineFacts(info["ServerVersion"], info["ContainersRunning"], int(moment.timestamp()))

    async def states(self) -> dict[str, str]:
        """Look at the states alone of all containers of Compose projects, by id: one cheap call."""
        return {row["Id"]: row["State"] for row in await self._rows()}

    async def containers(self) -> dict[str, Container]:
        """Look at all containers of Compose projects, by id, each inspected: health and exit codes are only there."""
        return await self.inspected([row["Id"] for row in await self._rows()])

    async def inspected(self, ids: Sequence[str]) -> dict[str, Container]:
        """Look at some containers, by id; those that are gone, or of no Compose project, are left out."""
        paths = [f"/containers/{quote(container_id, safe='')}/json" for container_id in ids]
        shares = [share for n in range(self.streams) if (share := paths[n :: self.streams])]
        told = await asyncio.gather(*(self._get(share) for share in shares))
        abouts = [about for share in told for about in share if about is not None]
        real = await self._resolve([named for about in abouts if (named := _named(about)) is not None])
        found = (of_inspection(about, real.__getitem__) for about in abouts)
        return {c.state.id: c for c in found if c is not None}

    async def events(self, since: int) -> AsyncGenerator[str, None]:
        """Yield the id of each container that something happens to, from an Engine's time (epoch seconds) on.

        An empty one comes first, as soon as the Engine listens.
        """
        filters = json.dumps({"type": ["container"], "event": list(EVENTS)})
        path = f"/events?{urlencode({'since': since, 'filters': filters})}"
        rest = b""
        async with self.dial() as stream:
            talk = Talk(stream)
            async with answering(_CALL_SECONDS):
                await talk.ask(path)
            yield ""
            async with aclosing(talk.body()) as body:
                async for data in body:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in filter(None, lines):
                        yield json.loads(line)["Actor"]["ID"]
        raise EngineProblemError("The Docker Engine closed the stream of its events: see on the host that it runs.")

    async def _rows(self) -> list[dict[str, Any]]:
        filters = urlencode({"all": 1, "filters": json.dumps({"label": [PROJECT]})})
        (rows,) = await self._get([f"/containers/json?{filters}"])
        return list(rows)

    async def _get(self, paths: Sequence[str], *, seconds: float = _CALL_SECONDS) -> list[Any]:
        """Ask one thing after the other on one stream; None for what the Engine doesn't know."""
        async with self.dial() as stream:
            talk = Talk(stream)
            answers = []
            for path in paths:
                async with answering(seconds):
                    answers.append(await talk.get(path))
            return answers


class Resolve(Protocol):
    """Resolves paths on the host."""

    async def __call__(self, paths: list[str]) -> Mapping[str, str]:
        """Return each path's real one. Raises ContactLostError."""


def _named(about: Mapping[str, Any]) -> str | None:
    labels = about["Config"]["Labels"] or {}
    return named_directory(labels) if PROJECT in labels else None
