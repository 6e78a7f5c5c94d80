"""Valid and invalid values of each field: errors name the field, and are never a 500."""

import pytest
from factories import PATH, World
from moorage_common.clock import SystemClock
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts import endpoint
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.pki.authority import Authority
from moorage_controller.pki.identity import ControllerIdentity

SQLITE_ONLY = "what lies between the socket and the services asks no database"

CONTROL = ["a\nb", "a\rb", "a\0b", "a\tb", "\x1b[31mred", "a\x7fb", "\n", "a\x0bb"]
BAD_PATHS = [
    "",
    " ",
    "relative",
    "./x",
    "~/x",
    "$HOME/x",
    "C:\\apps",
    "..",
    "../x",
    "/..",
    "/../etc",
    "/srv/../etc",
    "/srv/apps/..",
    "/srv/./../x",
    "//../x",
    "/srv/\0",
    "/srv\0/../etc",
    "/srv/a\nb",
    "/srv/a\r\nrm -rf x",
    "/srv/\x1b]0;x\x07",
    "/srv/\x7f",
    "/" + "x" * 500,
    "/srv/\ud800",
    "file:///srv",
    " /srv/leading",
    "\u2028/srv",
    "-rf /",
    7,
    ["/srv"],
    {"path": "/srv"},
    True,
]
STRANGE_PATHS = [
    "/",
    "/srv/with space",
    "/srv/$(reboot)",
    "/srv/`id`",
    "/srv/a;b|c&d>e<f",
    "/srv/'quoted\"",
    "/srv/-rf",
    "/srv/...",
    "/srv/..hidden",
    "/srv/a..b",
    "/srv/ünïcödé/日本語/🚢",
    "/srv/%2e%2e/%00",
    "/srv/*?[a]",
    "/" + "x" * 499,
]
BAD_TIMEOUTS = [0, -1, 43_201, "x", "", 1.5, "1.5", True, False, [60], {"minutes": 5}, 10**30, "1e3"]


async def body(world: World) -> dict[str, object]:
    """Return a valid body of an app."""
    project_id = (await world.admin.post("/api/projects", {"name": "Shop"})).expect(201)["id"]
    return {"name": "a", "projectId": project_id, "serverId": await world.new_server(), "cdPath": PATH}


def fields(errors: list[dict[str, str]]) -> set[str]:
    assert all(error["message"].strip() for error in errors)
    return {error["field"] for error in errors}


async def test_invalid_path_is_refused(world: World) -> None:
    app = await body(world)
    app_id = (await world.admin.post("/api/apps", app)).expect(201)["id"]
    for path in BAD_PATHS:
        made = await world.admin.post("/api/apps", {**app, "cdPath": path})
        assert fields(made.expect(422, "invalid_field")["errors"]) == {"cdPath"}, path
        changed = await world.admin.put(f"/api/apps/{app_id}", {"cdPath": path})
        assert fields(changed.expect(422, "invalid_field")["errors"]) == {"cdPath"}, path
    assert (await world.app(app_id))["cdPath"] == PATH


async def test_unusual_path_is_accepted_and_kept_verbatim(world: World) -> None:
    app = await body(world)
    for path in STRANGE_PATHS:
        made = (await world.admin.post("/api/apps", {**app, "cdPath": path})).expect(201)
        assert (await world.app(made["id"]))["cdPath"] == path


async def test_auto_stop_timeout_is_whole_minutes_up_to_30_days(world: World) -> None:
    app = await body(world)
    app_id = (await world.admin.post("/api/apps", app)).expect(201)["id"]
    for timeout in BAD_TIMEOUTS:
        made = await world.admin.post("/api/apps", {**app, "autoStopTimeout": timeout})
        assert fields(made.expect(422, "invalid_field")["errors"]) == {"autoStopTimeout"}, timeout
        changed = await world.admin.put(f"/api/apps/{app_id}", {"autoStopTimeout": timeout})
        assert fields(changed.expect(422, "invalid_field")["errors"]) == {"autoStopTimeout"}, timeout
    for timeout in (1, 43_200):
        made = await world.admin.post("/api/apps", {**app, "cdPath": f"/srv/{timeout}", "autoStopTimeout": timeout})
        assert made.expect(201)["autoStopTimeout"] == timeout


async def test_start_timeout_follows_the_same_rules(world: World) -> None:
    server_id, host = await world.new_host()
    app_id = await world.new_app(server_id)
    for verb in ("start", "restart"):
        for name in ("timeout", "timeout_minutes"):
            for timeout in BAD_TIMEOUTS:
                reply = await world.user.post(f"/api/apps/{app_id}/{verb}", {name: timeout})
                assert fields(reply.expect(422, "invalid_field")["errors"]) == {name}, timeout
    assert host.journal == {}


@pytest.mark.parametrize("kind", ["servers", "projects", "apps"])
async def test_name_is_one_line_of_at_most_255_characters(world: World, kind: str) -> None:
    kinds: dict[str, dict[str, object]] = {
        "servers": {"address": "10.0.0.1"},
        "projects": {},
        "apps": await body(world),
    }
    good = kinds[kind]
    for name in [*CONTROL[:-2], "", "   ", "x" * 256, 7, None, ["x"], {"a": 1}]:
        reply = await world.admin.post(f"/api/{kind}", {**good, "name": name})
        assert fields(reply.expect(422, "invalid_field")["errors"]) == {"name"}, repr(name)
    strange = ("x" * 255, "Ünïcödé 日本語 🚢", "<script>alert(1)</script>", "'; DROP TABLE apps; --", "a\u202eb")
    for n, name in enumerate(strange):
        own = {"cdPath": f"/srv/{n}"} if kind == "apps" else {}
        assert (await world.admin.post(f"/api/{kind}", {**good, **own, "name": name})).expect(201)["name"] == name


NO_ENDPOINTS = [
    "host",
    "host:",
    ":7443",
    "host:0",
    "host:65536",
    "host:x",
    "host:-1",
    "host:٣",
    "unix:/run/docker.sock:1",
    "unix:///run/docker.sock:1",
    "unix-abstract:name:1",
    "vsock:2:1",
    "dns:host:1",
    "dns:///host:1",
    "dns://1.1.1.1/host:1",
    "xds:///host:1",
    "ipv4:10.0.0.1:1",
    "ipv4:10.0.0.1:1,10.0.0.2:1",
    "ipv6:[::1]:1",
    "http://host:1",
    "host/path:1",
    "host:1/path",
    "user@host:1",
    "host%2f:1",
    "::1:7443",
    "[::1:7443",
    "[10.0.0.1]:1",
    "[host]:1",
    "[]:1",
    "-host:1",
    "10.0.0:1",
    "host..x:1",
    "host:01",
    "host:1:2",
]


async def test_agent_endpoint_is_host_and_port(world: World) -> None:
    good = {"name": "s", "address": "10.0.0.1"}
    for value in NO_ENDPOINTS:
        body = {"token": "t", "csr": "c", "version": "1", "endpoint": value}
        errors = (await world.nobody.post("/api/enroll", body)).expect(422, "invalid_field")["errors"]
        assert [each["field"] for each in errors] == ["endpoint"], value
        assert str(errors[0]["message"]).startswith("It must be HOST:PORT"), value
    for value in ("host:1", "db-1.example.com:7443", "bücher.example:65535", "10.0.0.1:7443", "[::1]:7443"):
        made = (await world.admin.post("/api/servers", {**good, "apiEndpoint": value})).expect(201)
        assert made["apiEndpoint"] == value


def test_channel_target_is_host_and_port_only() -> None:
    targets = {
        "host.example:1": "dns:///host.example:1",
        "10.0.0.1:7443": "ipv4:10.0.0.1:7443",
        "[::1]:7443": "ipv6:[::1]:7443",
        "[fe80::1%eth0]:7443": "ipv6:[fe80::1%25eth0]:7443",
    }
    assert {text: endpoint.parse(text).target for text in targets} == targets


async def test_malformed_stored_endpoint_is_never_dialled() -> None:
    identity = ControllerIdentity(Authority.create(SystemClock().now())[0], SystemClock())
    channels = AgentChannels(identity.current)
    for value in NO_ENDPOINTS:
        with pytest.raises(HostUnreachableError, match="HOST:PORT"):
            channels.get(value, "a.agents.moorage")
    await channels.close()


async def test_other_server_fields_are_validated(world: World) -> None:
    good = {"name": "s", "address": "10.0.0.1"}
    bad: dict[str, list[object]] = {
        "address": ["", " ", "a b", "a\nb", "x" * 256, None, 7],
        "sshPort": [0, 65_536, -1, "ssh", 1.5, None, True],
        "sshUser": ["a b", "a\nb", "x" * 256, 7],
        "apiEndpoint": ["a b:1", 7, *NO_ENDPOINTS],
    }
    server_id = (await world.admin.post("/api/servers", good)).expect(201)["id"]
    for field, values in bad.items():
        for value in values:
            reply = await world.admin.post("/api/servers", {**good, field: value})
            assert fields(reply.expect(422, "invalid_field")["errors"]) == {field}, (field, value)
            if value is not None:
                reply = await world.admin.put(f"/api/servers/{server_id}", {field: value})
                assert fields(reply.expect(422, "invalid_field")["errors"]) == {field}, (field, value)
    for address in ("db.example.com", "::1", "fe80::1%eth0", "xn--bcher-kva.example"):
        assert (await world.admin.post("/api/servers", {**good, "address": address})).expect(201)["address"] == address


async def test_app_url_must_be_http_or_https(world: World) -> None:
    app = await body(world)
    for url in ("javascript:alert(1)", "ftp://x", "//x", "x", "http://", "http:///x", "http://[::1", "http://a\nb", 7):
        reply = await world.admin.post("/api/apps", {**app, "appUrl": url})
        assert fields(reply.expect(422, "invalid_field")["errors"]) == {"appUrl"}, url
    for n, url in enumerate(("http://192.168.1.100:8080", "https://x.example.com/a?b=c#d", "http://[::1]:80/")):
        made = await world.admin.post("/api/apps", {**app, "cdPath": f"/srv/{n}", "appUrl": url})
        assert made.expect(201)["appUrl"] == url


@pytest.mark.parametrize("field", ["projectId", "serverId"])
async def test_reference_must_be_an_id(world: World, field: str) -> None:
    app = await body(world)
    for value in ("", "1", None, 7, "x" * 36):
        reply = await world.admin.post("/api/apps", {**app, field: value})
        assert fields(reply.expect(422, "invalid_field")["errors"]) == {field}, value


async def test_all_invalid_fields_are_reported_together(world: World) -> None:
    reply = await world.admin.post("/api/apps", {"name": "", "cdPath": "x", "autoStopTimeout": 0})
    errors = reply.expect(422, "invalid_field")["errors"]
    assert fields(errors) == {"name", "cdPath", "autoStopTimeout", "projectId", "serverId"}


async def test_login_fields_must_be_text(world: World) -> None:
    for sent in ({}, {"username": "admin"}, {"username": 1, "password": 2}, {"username": None, "password": None}):
        reply = await world.nobody.post("/api/auth/login", sent)
        assert reply.expect(422, "invalid_field")["errors"]


async def test_enrolment_fields_are_validated_before_any_lookup(world: World) -> None:
    good = {"token": "x.y", "csr": "x", "endpoint": "10.0.0.1:7443", "version": "0.1.0"}
    bad = {"token": "", "csr": "x" * 10_001, "endpoint": "nowhere", "version": "x" * 51}
    for field, value in bad.items():
        reply = await world.nobody.post("/api/enroll", {**good, field: value})
        assert fields(reply.expect(422, "invalid_field")["errors"]) == {field}
    assert fields((await world.nobody.post("/api/enroll", good)).expect(422)["errors"]) == {"csr"}
