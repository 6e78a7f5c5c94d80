"""A small client of the controller's REST API: blocking; on an event loop, call it through `asyncio.to_thread`."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT = 120.0
"""Seconds; a start replies when Compose is done."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its status, its headers (names in lower case), and its body as JSON, or as text if it isn't JSON."""

    status: int
    headers: Mapping[str, str]
    json: Any

    def expect(self, *statuses: int) -> Any:  # noqa: ANN401  # JSON is whatever the route replies
        """Return the body. Raises AssertionError if the status is none of these (any 2xx by default)."""
        fine = self.status in statuses if statuses else 200 <= self.status < 300  # noqa: PLR2004  # HTTP statuses
        if not fine:
            raise AssertionError(f"The API replied {self.status}: {self.json}")
        return self.json


class Api:
    """The API at a base URL, anonymous or with a token; `timeout` in seconds is for each wait for the controller."""

    def __init__(self, url: str, token: str | None = None, *, timeout: float = _TIMEOUT) -> None:
        self.url = url
        self.token = token
        self.timeout = timeout

    def login(self, username: str, password: str) -> "Api":
        """Log in and return the API as that user. Raises AssertionError if the controller refuses."""
        body = {"username": username, "password": password}
        return Api(self.url, self.post("/api/auth/login", body).expect(200)["token"], timeout=self.timeout)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Reply:
        """GET a path."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
        """POST a body as JSON."""
        return self.request("POST", path, body, headers=headers)

    def put(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
        """PUT a body as JSON."""
        return self.request("PUT", path, body, headers=headers)

    def delete(self, path: str, *, headers: Mapping[str, str] | None = None) -> Reply:
        """DELETE a path."""
        return self.request("DELETE", path, headers=headers)

    def request(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request on its own connection. Raises OSError if there is no answer."""
        sent = {"Accept": "application/json", **(headers or {})}
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        data = None
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            data = json.dumps(body).encode()
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=self.timeout)
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, _read(reply.read()))
        except http.client.HTTPException as error:  # the controller was killed in the middle of its reply
            raise ConnectionError(f"{method} {path} was cut: {error!r}") from error
        finally:
            connection.close()


def _read(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
