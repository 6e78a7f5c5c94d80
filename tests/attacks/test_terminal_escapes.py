"""Escape sequences from hosts, containers and callers reach no terminal and no audit log."""

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
from attacked_controller import attacked
from factories import World
from moorage_cli import clean
from moorage_lab.programs.processes import installed, plain_environment
from pseudo_terminal import Terminal

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
EVIL = (
    f"{CLIPBOARD}\x1b]0;title\x1b\\\x1b[2J\x1b[31mred\x9b5n\x9d52;c;eA==\x9c\x1bPq\x1b\\\x1bc\x90x\x9c"
    "\x07\x08\x0d\x00\x7f\u202eleft\u2066\u200f\u2028\ufeff[link=https://evil.example]x[/link]END"
)
ID = "00000000-0000-4000-8000-000000000001"
STRIPPED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def evil_row(**fields: object) -> dict[str, object]:
    names = (
        "address status connection agentVersion statusDetail health appUrl lastError username action ipAddress "
        "details kind state error"
    )
    row: dict[str, object] = dict.fromkeys(names.split(), EVIL)
    row |= {"id": ID, "name": "shop", "serverId": ID, "projectId": ID, "runningAppsCount": 1, "stopAt": None}
    return {**row, "overdue": False, "createdAt": "2026-01-01T00:00:00Z", **fields}


class Hostile(BaseHTTPRequestHandler):
    """A controller whose texts all contain escape sequences."""

    def do_GET(self) -> None:
        """Answer a list, a resource, a text or a stream."""
        path = self.path.partition("?")[0]
        if path.endswith("/output"):
            lines = [EVIL, f"Container shop{EVIL.replace(' ', '')} Started", f"Network [link=x]y[/link] {EVIL}"]
            self._stream([*lines, "plain"], json.dumps(evil_row(state="failed")))
        elif path.endswith("/logs"):
            if "follow" in self.path:
                self._stream([f"web | {EVIL}", "web | \x1b]52;c;never ended", "web | last"], "{}")
            else:
                self._send(200, "text/plain", f"web | {EVIL}\nweb | \x1b]52;c;never ended\nweb | last\n".encode())
        elif path.endswith("/audit-logs"):
            self._json(200, {"logs": [evil_row()], "total": 1})
        elif path in {"/api/servers", "/api/apps", "/api/projects"}:
            self._json(200, [evil_row(), evil_row(name=f"shop{EVIL}", id=ID.replace("1", "2"))])
        elif path.startswith("/api/operations/evil"):
            self._json(409, {"error": f"No: {EVIL}", "code": f"code{EVIL}"})
        else:
            self._json(200, evil_row())

    def do_POST(self) -> None:
        """Accept any request body."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/login"):
            self._json(200, {"token": "t", "user": {"username": EVIL, "role": EVIL}})
        else:
            self._json(200, evil_row())

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _json(self, status: int, body: object) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _stream(self, lines: list[str], done: str) -> None:
        events = [f"data: {line}" for text in lines for line in text.replace("\r", "").split("\n")]
        body = "\n\n".join([*events, f"event: done\ndata: {done}\n\n"])
        self._send(200, "text/event-stream", body.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Return the URL of a hostile controller."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def shown(environment: Mapping[str, str], *argv: str, terminal: str = "dumb") -> str:
    """Return what a command shows on a terminal."""
    made = Terminal([installed("moorage"), *argv], {**environment, "TERM": terminal})
    try:
        made.ends()
        return made.text
    finally:
        made.close()


COMMANDS = [
    ("servers",),
    ("apps",),
    ("audit",),
    ("start", "shop"),
    ("start", "-d", ID),
    ("stop", ID),
    ("restart", ID),
    ("extend", ID, "-m", "5"),
    ("follow", ID),
    ("follow", "evil"),
    ("cancel", ID),
    ("logs", ID),
    ("logs", "-f", ID),
    ("bootstrap", "-d", ID),
    ("servers", "--json"),
    ("audit", "--json"),
]


@pytest.fixture
def home(url: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user of the hostile controller."""
    environment = plain_environment(XDG_CONFIG_HOME=str(tmp_path), COLUMNS="400", LINES="60", LC_ALL="C.UTF-8")
    return {**environment, "MOORAGE_URL": url, "MOORAGE_TOKEN": "t", "PYTHONUTF8": "1"}


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_every_command_removes_escape_sequences(home: dict[str, str], argv: tuple[str, ...]) -> None:
    text = shown(home, *argv)
    assert text.strip(), "nothing was shown"
    assert STRIPPED.findall(text.replace("\r\n", "\n")) == []
    if argv[0] == "logs":
        assert "web | last" in text, "an escape that never ends hides nothing"


def test_colour_terminal_gets_only_own_colours(home: dict[str, str], url: str, tmp_path: Path) -> None:
    for argv in (("follow", ID), ("apps",), ("audit",)):
        text = shown(home, *argv, terminal="xterm-256color")
        assert "\x1b]" not in text
        # Colours, cursor movements and cleared lines: those of the progress display.
        assert set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", text)) <= set("mAKlhG")
        assert "\x1b[2J" not in text
        assert "\x1b[31mred" not in text
    password = tmp_path / "password"
    password.write_text("x\n")
    text = shown(home, "login", url, "-u", "me", "--password-file", str(password))
    assert "END" in text
    assert STRIPPED.findall(text.replace("\r\n", "\n")) == []


def test_json_output_keeps_api_text_unchanged(home: dict[str, str]) -> None:
    document: list[dict[str, Any]] = json.loads(shown(home, "servers", "--json"))
    assert document[0]["statusDetail"] == EVIL


def test_unsafe_names_are_not_completed(home: dict[str, str]) -> None:
    words = {"_MOORAGE_COMPLETE": "zsh_complete", "COMP_WORDS": "moorage start sh", "COMP_CWORD": "2"}
    text = shown({**home, **words})
    assert "shop" in text
    assert STRIPPED.findall(text.replace("\r\n", "\n")) == []
    assert text.count("shop") == 1


def test_cleaning_takes_linear_time() -> None:
    for hostile in ("\x1b]" * 200_000, "\x9d" * 200_000, "\x1b[" + "0" * 200_000, "\x1bP\n" * 100_000):
        assert "\x1b" not in clean.text(hostile)
    assert clean.text("Grüße\t日本 ✔\n") == "Grüße\t日本 ✔\n"
    assert clean.text("\x1b]52;c;x\nnext line") == "52;c;x\nnext line"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Return a controller."""
    async with attacked(tmp_path) as made:
        yield made


async def test_caller_supplied_text_is_stored_clean(world: World) -> None:
    body = {"username": EVIL, "password": "x"}
    (await world.nobody.post("/api/auth/login", body, User_Agent="curl\x9b5n\x9d52;c;x\x9c")).expect(401)
    (await world.admin.post("/api/projects", {"name": "p"}, User_Agent="\u202egpj.exe")).expect(201)
    entries = await world.audit("LOGIN_FAILED", "CREATE")
    assert len(entries) == 2
    for entry in entries:
        for value in (entry["username"], entry["resourceName"], entry["userAgent"], entry["details"]):
            assert STRIPPED.findall(value) == []
    (name,) = [entry["username"] for entry in entries if entry["action"] == "LOGIN_FAILED"]
    assert name.startswith("red")
    assert "left" in name


async def test_caller_supplied_path_is_logged_as_sent(world: World) -> None:
    told: SimpleQueue[logging.LogRecord] = SimpleQueue()
    records = QueueHandler(told)
    logging.getLogger().addHandler(records)
    (await world.nobody.get("/api/x%1b]52;c;x%07")).expect(404)
    logging.getLogger().removeHandler(records)
    (line,) = [line for line in (told.get_nowait().getMessage() for _ in range(told.qsize())) if "52;c;x" in line]
    assert "\\x1b" not in line
    assert STRIPPED.findall(line) == []
