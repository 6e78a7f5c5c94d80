"""A dashboard for tests: a page at an origin of its own, whose script calls the API in a real browser."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, Error, Page, sync_playwright

_PAGE = b"""<!doctype html>
<title>Dashboard</title>
<script>
async function call(url, method, headers, body) {
  const reply = await fetch(url, { method, headers, body });
  return { status: reply.status, headers: Object.fromEntries(reply.headers), text: await reply.text() };
}
</script>
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(_PAGE if found else b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Keep the tests' output clean."""


@contextmanager
def served() -> Iterator[str]:
    """Serve the page; yields its origin. Its host differs from the API's, so it is cross-site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, name="dashboard")
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium or Chrome, headless. Raises AssertionError where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "install the package chromium (`make test` does)"
    with sync_playwright() as playwright:
        # Chromium's sandbox doesn't work for root, the tests' user; the browser sees only these pages.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Reply:
    """A reply as a page's script can read it: only the headers that CORS exposes, in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    def expect(self, status: int) -> Any:  # noqa: ANN401 - JSON
        """Return the body, read, of a reply with that status."""
        assert self.status == status, self.text
        return json.loads(self.text)


class Dashboard:
    """The page at an origin, open in a browser; `token` is sent once it is set."""

    def __init__(self, page: Page, origin: str, api_url: str) -> None:
        page.goto(origin)
        self._page = page
        self._api_url = api_url
        self.token: str | None = None

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Reply | None:
        """Fetch in the page's script; None where the browser blocks it. Header names use underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        data = None if body is None else json.dumps(body)
        try:
            got = self._page.evaluate("parts => call(...parts)", [self._api_url + path, method, sent, data])
        except Error as error:
            if "TypeError: Failed to fetch" in error.message:
                return None
            raise
        return Reply(got["status"], got["headers"], got["text"])

    def fetch(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """Fetch with one retry.

        Chromium aborts requests when a network interface appears or disappears, which other tests' Engines cause.
        """
        reply = self.call(method, path, body, **headers) or self.call(method, path, body, **headers)
        assert reply is not None, f"the browser refused {method} {path}"
        return reply
