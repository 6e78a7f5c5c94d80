"""Hostile input in every place of a request: no 500, and no lost data."""

import io
import json
from typing import Any

import pytest
from factories import World

TEXTS = [
    *(
        "; reboot",
        "$(reboot)",
        "`reboot`",
        "| cat /etc/passwd",
        "&& rm -rf /",
        "> /etc/x",
        "'",
        '"',
        "\\",
        "%s%n",
        "${IFS}",
    ),
    *(
        "-rf",
        "--help",
        "~root",
        "*",
        "?",
        "[a-z]",
        "{a,b}",
        "!!",
        "#",
        "\x00",
        "a\x00b",
        "\n",
        "a\r\nX: y",
        "\t",
        "\x1b[2J",
    ),
    *("\u202egnp.exe", "\u200b", "\ufeff", "\u2028", "e\u0301", "\U0001f6a2", "\ud800", "\uffff", "İ", "ß", "١٢"),
    *("../../etc/passwd", "..\\..\\x", "/../..", "%2e%2e%2f", "file:///etc/passwd", "//evil.example.com", "/proc/self"),
    *("' OR '1'='1", "'; DROP TABLE apps; --", '{"$gt": ""}', "{{7*7}}", "${7*7}", "<script>alert(1)</script>"),
    *("null", "undefined", "true", "NaN", "Infinity", "0", "-1", "1e309", "9" * 400, "0x7f", "1_000"),
    *("", " ", "\u00a0", "x" * 256, "x" * 501, "x" * 100_000, "é" * 5_000, "x" * (1024 * 1024 - 5_000)),
    *("con", "nul.txt", "a/b", "a:b@c", "[::1", "http://[", "127.0.0.1:99999", "xn--a", "javascript:alert(1)"),
]
VALUES: list[object] = [None, True, 0, -1, 1.5, 10**30, -(10**30), [], [[]], {}, {"a": {"b": []}}, [None] * 1000]
CHECKED: dict[str, object] = {"lastChecked": 0, "statusDetail": ""}
DEEP = [
    b'{"name":' + opening * 50_000 + b"1" + closing * 50_000 + b"}"
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"))
]
BOMBS = [
    *DEEP,
    b'{"name":"x",' * 10_000,
    b"{" + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}",
    b'{"name":"a","name":"b"}',
    b'{"name":' + b"1" * 1_000_000 + b"}",
    b'{"name":1e999999}',
    b'{"__proto__":{"role":"admin"},"name":"x"}',
    b"\xef\xbb\xbf{}",
    b'{"name":"\xff"}',
    json.dumps({"name": "x"}).encode("utf-16"),
]
HEADERS = {
    "X-Request-Id": ["../x", "%0d%0aX: y", "x" * 4000, "{}", "' OR 1=1"],
    "Prefer": ["wait=999999999999", "wait=-1", "wait=x", "respond-async" * 100, "wait=1;wait=2", ",,,"],
    "If-None-Match": ['"', "W/", "*,*", ",".join(['"x"'] * 500), "\u00e9"],
    "X-Forwarded-For": ["x" * 4000, ",".join(["1.1.1.1"] * 400), "::ffff:999.1.1.1", "[", "1.1.1.1%eth0"],
    "Origin": ["x" * 4000, "http://", "null", "http://a b", "https://[::1"],
    "Authorization": [
        "Bearer",
        "Bearer ",
        "Basic x",
        "Bearer a b",
        "bearer " + "x" * 4000,
        "Bearer ..",
        "Bearer \u00e9",
    ],
    "Content-Type": [
        "application/json;;;",
        "application/json; charset=x",
        "x",
        "/",
        "application/json; charset=utf-16",
    ],
    "User-Agent": ["", "x" * 4000, "\u00e9", "() { :; }; reboot"],
}


async def everything(world: World) -> list[Any]:
    """Return all stored resources."""
    found: list[Any] = []
    for kind in ("servers", "projects", "apps"):
        found += (await world.admin.get(f"/api/{kind}")).expect(200)
    return found


@pytest.mark.parametrize("kind", ["servers", "projects", "apps"])
async def test_hostile_field_values_cause_no_fault(world: World, logs: io.StringIO, kind: str) -> None:
    app_id = await world.new_app(await world.new_server())
    before = await everything(world)
    app = before[-1]
    good: dict[str, dict[str, object]] = {
        "servers": {"name": "s", "address": "10.0.0.1", "sshUser": "u", "sshPort": 22, "apiEndpoint": "h:1"},
        "projects": {"name": "p", "description": "d"},
        "apps": {name: app[name] for name in ("name", "projectId", "serverId", "cdPath", "domain", "autoStopTimeout")},
    }
    for field in good[kind]:
        for n, value in enumerate(
            [*TEXTS, *VALUES, *(f"/srv/{text}" for text in TEXTS if field == "cdPath" and len(text) < 600)]
        ):
            own = {"cdPath": f"/srv/{field}/{n}"} if kind == "apps" else {}
            reply = await world.admin.post(f"/api/{kind}", {**good[kind], **own, field: value})
            # Some of the paths denote the same directory in another notation.
            taken = field == "cdPath" and reply.status == 409
            assert reply.status in {201, 404, 422, 413} or taken, (field, repr(value)[:60], reply.text[:200])
            if reply.status == 201:
                stored = (await world.admin.get(f"/api/{kind}/{reply.json['id']}")).expect(200)
                # The time of a server's first check is undefined.
                assert {**stored, **CHECKED} == {**reply.json, **CHECKED}
    after = await everything(world)
    assert [row for row in before if row not in after] == []
    assert (await world.app(app_id))["status"] == "stopped"
    assert "request_failed" not in logs.getvalue()


@pytest.mark.parametrize("number", range(len(BOMBS)))
async def test_hostile_bodies_cause_no_fault(world: World, logs: io.StringIO, number: int) -> None:
    for path in ("/api/projects", "/api/servers", "/api/apps", "/api/auth/login", "/api/enroll"):
        reply = await world.admin.send("POST", path, data=BOMBS[number])
        assert reply.status in {201, 400, 401, 413, 422}, reply.text[:200]
    assert "request_failed" not in logs.getvalue()


async def test_hostile_headers_cause_no_fault(world: World, logs: io.StringIO) -> None:
    for name, values in HEADERS.items():
        for value in values:
            for method, path in (("GET", "/api/apps"), ("POST", "/api/projects")):
                data = b'{"name":"x"}' if method == "POST" else None
                reply = await world.admin.send(method, path, data=data, headers={name: value})
                assert reply.status in {200, 201, 304, 400, 401, 415}, (name, value[:60], reply.text[:200])
                assert "\n" not in "".join(reply.headers.values())
    assert "request_failed" not in logs.getvalue()


@pytest.mark.parametrize(
    "query",
    ["appId", "serverId", "state", "limit", "offset", "userId", "action", "resourceType", "from", "to", "force"],
)
async def test_hostile_queries_cause_no_fault(world: World, logs: io.StringIO, query: str) -> None:
    for text in (text for text in TEXTS if len(text) < 2000):
        quoted = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
        for path in ("/api/operations", "/api/audit-logs"):
            reply = await world.admin.get(f"{path}?{query}={quoted}")
            assert reply.status in {200, 422}, (query, text[:60], reply.text[:200])
    assert "request_failed" not in logs.getvalue()
