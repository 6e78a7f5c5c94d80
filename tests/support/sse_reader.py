"""A reader of server-sent events, as a browser reads them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from factories import Api

PATIENCE = 20.0


@dataclass(frozen=True)
class Event:
    """An event; `name` is `message` where the stream names none."""

    name: str
    data: str
    id: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The data, read."""
        return json.loads(self.data)


class Listener:
    """One open stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self.comments = 0

    async def next(self) -> Event | None:
        """Return the next event, None at the end of the stream."""
        name, data = "", list[str]()
        while True:
            async with asyncio.timeout(PATIENCE):
                raw = await self.response.content.readline()
            if not raw:
                return None
            line = raw.decode().rstrip("\r\n")
            if not line:
                if data:
                    return Event(name or "message", "\n".join(data), self.last_id)
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match field:
                case "":
                    self.comments += 1
                case "id":
                    self.last_id = value
                case "event":
                    name = value
                case "data":
                    data.append(value)

    async def until(self, name: str) -> list[Event]:
        """Return the events up to and with the first of a name."""
        found: list[Event] = []
        while not found or found[-1].name != name:
            event = await self.next()
            assert event is not None, f"the stream ended without {name}: {found[-3:]}"
            found.append(event)
        return found

    async def rest(self) -> list[Event]:
        """Return the events up to the end of the stream."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def listening(api: Api, path: str, last_id: str = "") -> AsyncIterator[Listener]:
    """Open a stream."""
    headers = {"Authorization": f"Bearer {api.token}", "Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    async with api.session.get(api.url + path, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Listener(response)
