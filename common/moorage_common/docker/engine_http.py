"""The Docker Engine's HTTP API over any byte stream: a local socket, or one forwarded by SSH."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Protocol

import h11

from moorage_common.untrusted import LIMITS, ByteBudget, UntrustedError, clean_sentence, parse_json

_READ_BYTES = 1 << 16


class EngineProblemError(Exception):
    """The host answers, but its Engine doesn't; `str()` is a sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(clean_sentence(sentence))


class EngineClosedError(EngineProblemError):
    """The stream to the Engine ended unexpectedly; a new one may work."""


class Stream(Protocol):
    """Bytes to and from the Engine."""

    async def read(self, limit: int) -> bytes:
        """Return received bytes, empty at EOF; `limit` is a hint, the result may be longer."""

    def write(self, data: bytes) -> None:
        """Send."""


@contextmanager
def understanding() -> Iterator[None]:
    """Translate errors of unexpected response shapes into EngineProblemError."""
    try:
        yield
    except UntrustedError as error:
        raise EngineProblemError(f"The Docker Engine can't be believed: see on the host what it is. {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        raise EngineProblemError(
            "The Docker Engine answered with something that isn't its API: see on the host what it is."
        ) from None


@asynccontextmanager
async def engine_timeout(seconds: float) -> AsyncIterator[None]:
    """Limit the time of the requests inside. Raises EngineProblemError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise EngineProblemError(
            f"The Docker Engine didn't answer within {seconds:.0f} seconds: see on the host how it is."
        ) from None


Dial = Callable[[], AbstractAsyncContextManager[Stream]]
"""Opens a stream to the Engine. Raises EngineProblemError, and the errors of the transport."""


class EngineConnection:
    """Sequential requests and responses on one stream.

    Every method that reads raises UntrustedError if the Engine's response exceeds a limit.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, path: str) -> int:
        """Send a request and return the status; read the body before the next request."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        for event in (h11.Request(method="GET", target=path, headers=[("Host", "docker")]), h11.EndOfMessage()):
            data = self._http.send(event)
            if data:
                self._stream.write(data)
        answer = await self._next()
        if not isinstance(answer, h11.Response):
            raise EngineProblemError("The Docker Engine doesn't answer: see on the host that it runs.")
        return answer.status_code

    async def body(self) -> AsyncGenerator[bytes, None]:
        """Yield the body of the response."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def whole(self, limit: int) -> bytes:
        """Return the whole body of the response."""
        budget, answer = ByteBudget("An answer of the Docker Engine", limit), bytearray()
        async with aclosing(self.body()) as body:
            async for data in body:
                budget.take(len(data))
                answer += data
        return bytes(answer)

    async def read(self, path: str, limit: int = LIMITS.engine_answer) -> tuple[int, Any]:
        """Send a request and return status and JSON body. Raises EngineProblemError if it isn't JSON."""
        status = await self.ask(path)
        answer = await self.whole(limit)
        try:
            return status, parse_json(answer, limit)
        except UntrustedError:
            raise EngineProblemError("The Docker Engine answered with something that isn't JSON.") from None

    async def get(self, path: str, limit: int = LIMITS.engine_answer) -> Any | None:  # noqa: ANN401 - JSON
        """GET a path and return the JSON; None for an unknown object (404). Raises EngineProblemError."""
        status, told = await self.read(path, limit)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status >= HTTPStatus.BAD_REQUEST:
            raise EngineProblemError(f"The Docker Engine answered with an error: {error_message(told, status)}")
        return told

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.read(_READ_BYTES))
        except h11.ProtocolError:
            raise EngineClosedError("The Docker Engine broke off its answer: see on the host that it runs.") from None
        return event


def error_message(told: object, status: int) -> str:
    """Return the Engine's message of an error response."""
    return str(told.get("message", status)) if isinstance(told, dict) else str(status)
