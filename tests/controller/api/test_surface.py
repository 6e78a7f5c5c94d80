"""The API's outer surface: headers, CORS, proxies, TLS."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from factories import World, make_settings
from fakes import FakeClock, FakeHosts, settle
from moorage_controller.api.http import cors
from moorage_controller.app import Controller
from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings
from pydantic import ValidationError

SQLITE_ONLY = "what lies between the socket and the services asks no database"

OURS = "https://dashboard.example.com"
SECOND = "http://localhost:5173"
HELMET = {
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
    "Content-Security-Policy",
    "Origin-Agent-Cluster",
    "Referrer-Policy",
    "X-Content-Type-Options",
    "X-DNS-Prefetch-Control",
    "X-Frame-Options",
    "X-Permitted-Cross-Domain-Policies",
    "X-XSS-Protection",
}


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[World]:
    """Return a controller that knows two dashboards and trusts this machine and one network as proxies."""
    more = {"frontend_url": f"{OURS}/, {SECOND}", "trusted_proxies": "127.0.0.0/8, 10.9.0.0/16, fd00::/8"}
    world = World(settings.model_copy(update=more))
    try:
        yield await world.start()
    finally:
        await world.close()


async def test_replies_have_security_headers_and_name_no_framework(world: World) -> None:
    for reply in (
        await world.admin.get("/api/apps"),
        await world.nobody.get("/x"),
        await world.nobody.get("/api/apps"),
    ):
        assert set(reply.headers) >= HELMET
        assert "X-Powered-By" not in reply.headers
        assert reply.headers["Server"] == "Moorage"
        assert "Strict-Transport-Security" not in reply.headers


@pytest.mark.parametrize("origin", [OURS, SECOND])
async def test_allowed_origin_may_preflight_call_and_read(behind: World, origin: str) -> None:
    asked = await behind.nobody.send(
        "OPTIONS",
        "/api/apps",
        headers={"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "prefer"},
    )
    assert asked.status == 204
    assert asked.headers["Access-Control-Allow-Origin"] == origin
    assert "PUT" in asked.headers["Access-Control-Allow-Methods"]
    allowed = asked.headers["Access-Control-Allow-Headers"].lower()
    for name in ("authorization", "content-type", "idempotency-key", "if-none-match", "prefer"):
        assert name in allowed
    for reply in (await behind.admin.get("/api/apps", Origin=origin), await behind.nobody.get("/api/x", Origin=origin)):
        assert reply.headers["Access-Control-Allow-Origin"] == origin
        assert "Origin" in reply.headers["Vary"]
        exposed = set(reply.headers["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= {"ETag", "X-Total-Count", "X-Request-Id", "Location", "Retry-After"}
        assert "Access-Control-Allow-Credentials" not in reply.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "https://dashboard.example.com.evil.com",
        "http://dashboard.example.com",
        "https://dashboard.example.com:8443",
        "https://dashboard.example.com/",
        "null",
        "*",
        "",
    ],
)
async def test_any_other_origin_gets_no_cors_header(behind: World, origin: str) -> None:
    asked = await behind.nobody.send(
        "OPTIONS", "/api/apps", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
    )
    for reply in (asked, await behind.admin.get("/api/apps", Origin=origin)):
        assert not [name for name in reply.headers if name.startswith("Access-Control-")]
        assert "Origin" in reply.headers["Vary"]


async def test_unknown_origin_is_logged_once_with_the_relevant_setting(
    behind: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cors, "log", structlog.get_logger())
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await behind.admin.get("/api/apps", Origin="https://evil.example.com")
        await behind.admin.get("/api/apps", Origin=OURS)
        await behind.admin.get("/api/apps", Origin=behind.admin.url)
    (entry,) = [each for each in logged if each["event"] == "origin_unknown"]
    assert entry["origin"] == "https://evil.example.com"
    assert "FRONTEND_URL" in entry["hint"]


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.9.1.1", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7:4711, 10.9.1.1", "203.0.113.7"),
        ("[2001:db8::1]:99", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("10.9.1.2, 10.9.1.1", "10.9.1.2"),
        ("6.6.6.6, nonsense, 10.9.1.1", "10.9.1.1"),
        ("", "127.0.0.1"),
        ("<script>", "127.0.0.1"),
    ],
)
async def test_caller_behind_proxies_is_rightmost_untrusted_address(behind: World, forwarded: str, seen: str) -> None:
    await behind.nobody.post("/api/auth/login", {"username": "x", "password": "y"}, X_Forwarded_For=forwarded)
    assert (await behind.audit("LOGIN_FAILED"))[-1]["ipAddress"] == seen


async def test_forwarded_headers_are_ignored_without_trusted_proxies(world: World) -> None:
    headers = {"X_Forwarded_For": "203.0.113.7", "X_Forwarded_Proto": "https"}
    reply = await world.nobody.post("/api/auth/login", {"username": "x", "password": "y"}, **headers)
    assert (await world.audit("LOGIN_FAILED"))[-1]["ipAddress"] == "127.0.0.1"
    assert "Strict-Transport-Security" not in reply.headers


async def test_https_at_trusted_proxy_counts_as_https(behind: World) -> None:
    assert "Strict-Transport-Security" in (await behind.nobody.get("/healthz", X_Forwarded_Proto="https")).headers
    reply = await behind.nobody.get("/healthz", X_Forwarded_Proto="https, http")
    assert "Strict-Transport-Security" not in reply.headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"frontend_url": "*"},
        {"frontend_url": "https://*.example.com"},
        {"frontend_url": "dashboard.example.com"},
        {"frontend_url": "https://ok.example.com, ftp://x"},
        {"trusted_proxies": "everyone"},
        {"trusted_proxies": "10.0.0.0/99"},
        {"tls_cert_file": "/x"},
        {"tls_key_file": "/x"},
    ],
)
def test_overly_permissive_settings_are_refused(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        make_settings(tmp_path, **wrong)


def certificate(folder: Path, name: str) -> dict[str, Path]:
    """Create a certificate for 127.0.0.1 with that common name, in the two TLS files."""
    made, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    argv += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(argv, check=True, capture_output=True)
    return {"tls_cert_file": made, "tls_key_file": key}


async def shown(address: str, context: ssl.SSLContext) -> bytes:
    """Return the certificate that the server presents on a new connection."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


def client(newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return a client context that accepts any certificate, up to the given TLS version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, newest
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def test_renewed_certificate_is_served_and_invalid_pair_is_ignored(tmp_path: Path) -> None:
    clock, files = FakeClock(), certificate(tmp_path, "first")
    settings = make_settings(tmp_path / "data", **files)
    async with Controller(settings, clock, hosts=lambda *_: FakeHosts(clock)) as controller:
        host, _, port = controller.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=client())
        assert b"Strict-Transport-Security" in await _ask(reader, writer)
        first = await shown(controller.address, client())
        await _look(clock)
        assert await shown(controller.address, client()) == first
        files["tls_key_file"].write_text("not a key")
        await _look(clock)
        assert await shown(controller.address, client()) == first
        certificate(tmp_path, "second")
        await _look(clock)
        assert await shown(controller.address, client()) != first
        # The earlier connection still works.
        assert b"200 OK" in await _ask(reader, writer)
        writer.close()
        await writer.wait_closed()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Request /healthz and return the reply's head; keep the connection open."""
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"}")
    return head


async def _look(clock: FakeClock) -> None:
    await settle()
    await clock.run(6)


async def test_tls_below_1_2_is_refused(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = make_settings(tmp_path / "data", **certificate(tmp_path, "x"))
    async with Controller(settings, clock, hosts=lambda *_: FakeHosts(clock)) as controller:
        assert await shown(controller.address, client(ssl.TLSVersion.TLSv1_2))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old = client(ssl.TLSVersion.TLSv1_1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(controller.address, old)


async def test_unusable_tls_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    files = certificate(tmp_path, "x")
    files["tls_key_file"].write_text("not a key")
    with pytest.raises(StartupError, match="TLS_CERT_FILE and TLS_KEY_FILE can't be used"):
        await Controller(make_settings(tmp_path / "data", **files), FakeClock()).__aenter__()
