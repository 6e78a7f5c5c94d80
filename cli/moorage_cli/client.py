"""The command line's client of the REST API: JSON, and server-sent events that resume after a lost connection."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from moorage_cli.errors import MoorageError, NotLoggedInError, UnknownNameError, UnreachableError

_ANSWER_SECONDS = 60.0
_SILENCE_SECONDS = 45.0
"""A stream has a heartbeat every 15 seconds."""
_TRIES, _PAUSE_SECONDS = 10, 1.0
_UNAUTHORIZED, _NOT_FOUND = 401, 404
_SERVER_FAULTS = frozenset({502, 503, 504})


class Client:
    """A controller at a URL, with a token; an empty token is an anonymous client.

    Every call raises UnreachableError, NotLoggedInError, UnknownNameError for a 404, and MoorageError with the API's
    own sentence for any other refusal.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        if not re.match(r"https?://[^/]", url):
            raise MoorageError(f"{url} is no URL: write http://HOST:PORT or https://HOST.")
        headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_ANSWER_SECONDS)
        except httpx.InvalidURL:
            raise MoorageError(f"{url} is no URL: write http://HOST:PORT or https://HOST.") from None

    def get(self, path: str, **query: object) -> Any:  # noqa: ANN401 - JSON
        """GET a path; None values of the query are omitted."""
        return self._send("GET", path, query={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: object = None, *, later: bool = False) -> Any:  # noqa: ANN401 - JSON
        """POST JSON; with `later` the reply is the operation, without waiting for its end."""
        return self._send("POST", path, body={} if body is None else body, later=later)

    def delete(self, path: str, *, later: bool = False) -> Any:  # noqa: ANN401 - JSON
        """DELETE a path; `later` as for `post`."""
        return self._send("DELETE", path, later=later)

    def text(self, path: str, **query: object) -> str:
        """GET plain text."""
        return self._reply("GET", path, query=query).text

    def stream(self, path: str, **query: object) -> Iterator[ServerSentEvent]:
        """Yield the events of a stream until its regular end.

        A lost connection is opened again after the last event; UnreachableError after ten failures in a row.
        """
        last, failures = "", 0
        while True:
            try:
                for event in self._events(path, query, last):
                    last, failures = event.id or last, 0
                    yield event
                    if event.event == "done":
                        return
            except (httpx.TransportError, SSEError, UnreachableError) as error:
                failures += 1
                if failures >= _TRIES:
                    raise self._unreachable(error) from None
            else:
                failures += 1
                if failures >= _TRIES:
                    return
            time.sleep(_PAUSE_SECONDS)

    def _events(self, path: str, query: Mapping[str, object], last: str) -> Iterator[ServerSentEvent]:
        headers = {"Last-Event-ID": last} if last else {}
        timeout = httpx.Timeout(_ANSWER_SECONDS, read=_SILENCE_SECONDS)
        with connect_sse(self._http, "GET", path, params=_plain(query), headers=headers, timeout=timeout) as source:
            if source.response.status_code in _SERVER_FAULTS:
                raise UnreachableError(f"{self.url} is not ready.")
            if source.response.is_error:
                source.response.read()
                self._refuse(source.response)
            yield from source.iter_sse()

    def _send(self, method: str, path: str, **how: Any) -> Any:  # noqa: ANN401 - JSON
        try:
            return self._reply(method, path, **how).json()
        except ValueError:
            raise MoorageError(f"{self.url} doesn't answer as a Moorage controller does: check the URL.") from None

    def _reply(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        later: bool = False,
    ) -> httpx.Response:
        headers = {"Prefer": "respond-async"} if later else {}
        try:
            reply = self._http.request(method, path, params=_plain(query or {}), json=body, headers=headers)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if reply.is_error:
            self._refuse(reply)
        return reply

    def _refuse(self, reply: httpx.Response) -> None:
        try:
            problem = reply.json()
            sentence = f"{problem['error']} ({problem['code']})"
        except (ValueError, KeyError, TypeError):
            raise MoorageError(f"{self.url} answers {reply.status_code}, and not as Moorage does.") from None
        if reply.status_code == _UNAUTHORIZED:
            raise NotLoggedInError(sentence)
        raise (UnknownNameError if reply.status_code == _NOT_FOUND else MoorageError)(sentence)

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"{self.url} can't be reached: {error}")


def _plain(query: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in query.items()}
