"""Properties of every reply: problem documents, headers, request ids, and invalid bodies."""

import asyncio
import io
import re
import socket
import struct
import uuid

import pytest
from factories import World
from moorage_controller.services.fleet.projects import Projects
from moorage_lab.waiting import eventually_async

SQLITE_ONLY = "what lies between the socket and the services asks no database"

SERVER = {"name": "s", "address": "10.0.0.9"}
PROBLEM = {"type", "title", "status", "detail", "code", "requestId", "error"}
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


async def test_every_error_is_a_problem_document_with_a_sentence(world: World) -> None:
    missing = str(uuid.uuid4())
    replies = {
        400: await world.admin.send("POST", "/api/projects", data=b"{"),
        401: await world.nobody.get("/api/apps"),
        403: await world.user.post("/api/projects", {"name": "x"}),
        404: await world.admin.get(f"/api/apps/{missing}"),
        405: await world.admin.send("PATCH", "/api/apps"),
        413: await world.admin.send("POST", "/api/projects", data=b'{"name":"' + b"x" * 1024 * 1024 + b'"}'),
        415: await world.admin.send("POST", "/api/projects", data=b"x", headers={"Content-Type": "text/plain"}),
        422: await world.admin.post("/api/projects", {}),
    }
    for status, reply in replies.items():
        body = reply.expect(status)
        assert body.keys() == (PROBLEM | {"errors"} if status == 422 else PROBLEM)
        assert reply.headers["Content-Type"].startswith("application/problem+json")
        assert body["status"] == status
        assert isinstance(body["error"], str)
        assert body["error"] == body["detail"]
        assert body["error"].strip()
        assert re.fullmatch(r"[a-z][a-z0-9_]*", body["code"])
        assert body["requestId"] == reply.headers["X-Request-Id"]
    assert replies[422].json["errors"] == [{"field": "name", "message": "It is missing: give it."}]


async def test_unknown_path_returns_a_problem_document(world: World) -> None:
    for api in (world.nobody, world.admin):
        (await api.get("/api/nothing")).expect(404, "not_found")
        (await api.get("/api/nothing/")).expect(404, "not_found")


async def test_every_reply_has_the_security_headers(world: World) -> None:
    for reply in (
        await world.admin.get("/api/apps"),
        await world.nobody.get("/api/apps"),
        await world.nobody.get("/nothing"),
        await world.nobody.get("/healthz"),
    ):
        assert {name: reply.headers[name] for name in SECURITY} == SECURITY
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


async def test_valid_request_id_is_echoed(world: World) -> None:
    for sane in ["abc", "0b9c-1.2_X", "x" * 128]:
        for path in ("/healthz", "/api/apps", "/nothing"):
            assert (await world.nobody.get(path, X_Request_Id=sane)).headers["X-Request-Id"] == sane


async def test_invalid_request_id_is_replaced(world: World) -> None:
    for insane in ["", "x" * 129, "a b", "<script>", "a;b", "ä", "a\tb", '"', "../../etc"]:
        reply = await world.nobody.get("/api/apps", X_Request_Id=insane)
        assert UUID.fullmatch(reply.headers["X-Request-Id"])
        assert reply.json["requestId"] == reply.headers["X-Request-Id"]


BODIES: list[tuple[bytes, int, str]] = [
    (b"{", 400, "unreadable_json"),
    (b"{'name': 'x'}", 400, "unreadable_json"),
    (b'{"name": "x"} trailing', 400, "unreadable_json"),
    (b"\xff\xfe\xff", 400, "unreadable_json"),
    (b"[" * 100_000, 400, "unreadable_json"),
    (b'{"name": ' + b"9" * 10_000 + b"}", 400, "unreadable_json"),
    (b"[]", 400, "not_an_object"),
    (b'[{"name": "x"}]', 400, "not_an_object"),
    (b'"name"', 400, "not_an_object"),
    (b"null", 400, "not_an_object"),
    (b"7", 400, "not_an_object"),
    (b'{"name": null}', 422, "invalid_field"),
    (b'{"name": "\\ud800"}', 422, "invalid_field"),
    (b'{"name": {"$gt": ""}}', 422, "invalid_field"),
    (b'{"name": NaN}', 422, "invalid_field"),
    (b'{"name": ["x"]}', 422, "invalid_field"),
    (b"", 422, "invalid_field"),
    (b"  \n ", 422, "invalid_field"),
]


async def test_unreadable_body_differs_from_invalid_body(world: World) -> None:
    for data, status, code in BODIES:
        reply = await world.admin.send("POST", "/api/projects", data=data)
        assert (reply.status, reply.json["code"]) == (status, code), data[:30]


@pytest.mark.parametrize(
    "media", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
async def test_other_media_type_is_refused(world: World, media: str) -> None:
    reply = await world.admin.send("POST", "/api/projects", data=b'{"name":"x"}', headers={"Content-Type": media})
    reply.expect(415, "unsupported_media_type")


@pytest.mark.parametrize("media", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
async def test_any_json_media_type_is_accepted(world: World, media: str) -> None:
    reply = await world.admin.send("POST", "/api/projects", data=b'{"name":"x"}', headers={"Content-Type": media})
    reply.expect(201)


async def test_body_of_1_mib_is_read_and_one_byte_more_is_refused(world: World) -> None:
    frame = b'{"name":"x","extra":""}'
    room = 1024 * 1024 - len(frame)
    full = frame[:-2] + b"y" * room + b'"}'
    assert len(full) == 1024 * 1024
    (await world.admin.send("POST", "/api/projects", data=full)).expect(201)
    (await world.admin.send("POST", "/api/projects", data=full + b" ")).expect(413, "body_too_large")


async def test_unknown_fields_and_query_parameters_are_ignored(world: World) -> None:
    body = {"name": "x", "color": "red", "id": str(uuid.uuid4()), "createdAt": 1}
    made = (await world.admin.post("/api/projects?cache=1", body)).expect(201)
    assert made["id"] != body["id"]
    assert made["createdAt"] != 1
    assert "color" not in made


async def test_malformed_id_returns_404(world: World) -> None:
    bad = ["1", "server-1", "..%2f..", "%00", "%ff", "x" * 1000, "00000000-0000-0000-0000-00000000000g"]
    for resource in ("servers", "projects", "apps", "operations"):
        for name in bad:
            (await world.admin.get(f"/api/{resource}/{name}")).expect(404)


UNKNOWN = [
    ("GET", "/api/servers/{}", "server_not_found"),
    ("PUT", "/api/servers/{}", "server_not_found"),
    ("DELETE", "/api/servers/{}", "server_not_found"),
    ("GET", "/api/servers/{}/status", "server_not_found"),
    ("POST", "/api/servers/{}/enrollment-token", "server_not_found"),
    ("GET", "/api/projects/{}", "project_not_found"),
    ("PUT", "/api/projects/{}", "project_not_found"),
    ("DELETE", "/api/projects/{}", "project_not_found"),
    ("GET", "/api/apps/{}", "app_not_found"),
    ("PUT", "/api/apps/{}", "app_not_found"),
    ("DELETE", "/api/apps/{}", "app_not_found"),
    ("DELETE", "/api/apps/{}?force=true", "app_not_found"),
    ("POST", "/api/apps/{}/start", "app_not_found"),
    ("POST", "/api/apps/{}/stop", "app_not_found"),
    ("POST", "/api/apps/{}/restart", "app_not_found"),
    ("GET", "/api/operations/{}", "operation_not_found"),
    ("POST", "/api/operations/{}/cancel", "operation_not_found"),
]


async def test_unknown_id_returns_404_on_every_route(world: World) -> None:
    for method, path, code in UNKNOWN:
        (await world.admin.send(method, path.format(uuid.uuid4()))).expect(404, code)


PAGES = [
    "limit=0",
    "limit=1001",
    "limit=-1",
    "limit=x",
    "limit=1e3",
    "limit=",
    "limit=%d9%a3",
    "offset=-1",
    "offset=x",
    "offset=9999999999999999999999999",
    "offset=0000000000009999999999999999999999999",
]


async def test_invalid_page_parameters_are_refused(world: World) -> None:
    for query in PAGES:
        (await world.admin.get(f"/api/audit-logs?{query}")).expect(422, "invalid_field")


@pytest.mark.parametrize("query", ["appId=x", "serverId=1", "appId=%00"])
async def test_filter_by_malformed_id_is_refused(world: World, query: str) -> None:
    (await world.admin.get(f"/api/operations?{query}")).expect(422, "invalid_field")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /api/auth/login HTTP/1.1\r\nUser-Agent: \xff\xfe\xed\xa0\x80",
        b"POST /api/auth/login HTTP/1.1\r\nX-Request-Id: \xff",
        b"POST /api/auth/login?x=%ff HTTP/1.1\r\nAuthorization: Bearer \xff",
        b"POST /api/auth/login?\xc3\x28 HTTP/1.1",
        b"GET /api/operations?state=%ed%a0%80 HTTP/1.1\r\nAuthorization: Bearer TOKEN",
        b"GET /api/operations?state=%00 HTTP/1.1\r\nAuthorization: Bearer TOKEN",
        b"GET /api/apps/%ed%a0%80 HTTP/1.1\r\nAuthorization: Bearer TOKEN",
        b"GET /api/apps HTTP/1.1\r\nAuthorization: Bearer \xff\xff",
    ],
)
async def test_non_utf8_bytes_return_a_client_error(world: World, logs: io.StringIO, head: bytes) -> None:
    """Raw, because a client library would refuse to send them."""
    host, port = world.nobody.url.removeprefix("http://").split(":")
    body = b'{"username":"admin","password":"x"}' if head.startswith(b"POST") else b""
    rest = b"Host: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.replace(b"TOKEN", (world.admin.token or "").encode()) + b"\r\n" + rest % (len(body), body))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split(b" ")[1] in {b"200", b"400", b"401", b"404", b"422"}, answer
    assert "request_failed" not in logs.getvalue()


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_caller_disconnect_in_body_logs_no_error(world: World, logs: io.StringIO, end: str) -> None:
    host, port = world.nobody.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b'Content-Length: 100\r\n\r\n{"username')
    await writer.drain()
    if end == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()
    told = await eventually_async(
        lambda: next((line for line in logs.getvalue().splitlines() if "/api/auth/login" in line), None),
        what="the access log",
    )
    assert "request_failed" not in logs.getvalue()
    assert "Traceback" not in logs.getvalue()
    assert '"cut": true' in told or "cut=True" in told, told
    assert "400" in told
    (await world.nobody.get("/healthz")).expect(200)


async def test_internal_error_shows_only_the_request_id(
    world: World, logs: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Projects) -> None:
        raise RuntimeError("an inner secret")

    monkeypatch.setattr(Projects, "all", broken)
    reply = await world.admin.get("/api/projects")
    body = reply.expect(500, "internal_error")
    assert "secret" not in reply.text
    line = next(line for line in logs.getvalue().splitlines() if "request_failed" in line)
    assert body["requestId"] in line
    assert "an inner secret" in line


async def test_health_and_readiness_need_no_token(world: World) -> None:
    assert (await world.nobody.get("/healthz")).expect(200) == {"status": "ok", "problems": []}
    assert (await world.nobody.get("/readyz")).expect(200) == {"status": "ok", "problems": []}
