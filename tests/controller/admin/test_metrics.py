"""/metrics: the documented metrics, protected by the token, with few values per label."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from uuid import uuid4

import pytest
from factories import PASSWORD, Api, World
from fakes import FakeHost, Plan, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.settings import Settings
from prometheus_client.parser import text_string_to_metric_families

SQLITE_ONLY = "One test looks at what is counted on PostgreSQL."

TOKEN = "a-test-s-metrics-token-0123456789abcdef"  # noqa: S105 - a test's


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    """Return a controller that shows its metrics."""
    world = World(settings.model_copy(update={"metrics_token": TOKEN}))
    try:
        yield await world.start()
    finally:
        await world.close()


class Scrape:
    """The result of one scrape of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with the labels; 0 where there is none."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


async def scrape(api: Api) -> Scrape:
    """Scrape the metrics."""
    reply = await api.get("/metrics", Authorization=f"Bearer {TOKEN}")
    assert reply.status == 200, reply.text
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(reply.text)


async def test_metrics_require_their_token(world: World) -> None:
    (await world.nobody.get("/metrics")).expect(401, "bad_token")
    (await world.admin.get("/metrics")).expect(401, "bad_token")
    (await world.nobody.get("/metrics", Authorization=f"Basic {TOKEN}")).expect(401, "bad_token")
    host, port = world.nobody.url.removeprefix("http://").split(":")
    for token in (b"\xff", TOKEN.encode()[:-1] + b"\xff", "é".encode()):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + token)
        writer.write(b"\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert (await scrape(world.nobody)).value("moorage_database_up") == 1


async def test_run_from_start_to_auto_stop_is_counted(world: World, host: FakeHost, running_app_id: str) -> None:
    assert host.reachable
    assert running_app_id
    now = await scrape(world.nobody)
    assert now.value("moorage_apps", status="running") == 1
    assert now.value("moorage_servers", connection="agent", status="online") == 1
    assert now.value("moorage_agents", version="0.1.0") == 1
    assert now.value("moorage_operations_total", kind="up", result="succeeded") == 1
    assert now.value("moorage_operation_duration_seconds_count", kind="up", result="succeeded") == 1
    await world.clock.run(5 * 60 + 2)
    await settle()
    now = await scrape(world.nobody)
    assert now.value("moorage_apps", status="stopped") == 1
    assert now.value("moorage_auto_stops_total", result="succeeded") == 1
    assert now.value("moorage_auto_stop_lateness_seconds_count") == 1
    assert now.value("moorage_auto_stop_lateness_seconds_sum") < 3
    assert now.value("moorage_auto_stop_last_look_timestamp_seconds") > 0
    assert now.value("moorage_background_work_up", work="auto-stop") == 1


async def test_check_of_a_server_is_counted(world: World) -> None:
    await world.new_host()
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    before = (await scrape(world.nobody)).value("moorage_status_checks_total", result="answered")
    (await world.admin.post(f"/api/servers/{server['id']}/test")).expect(200)
    after = (await scrape(world.nobody)).value("moorage_status_checks_total", result="answered")
    assert after == before + 1


async def test_overdue_apps_and_failures_are_exported(world: World, host: FakeHost, running_app_id: str) -> None:
    host.plans[OperationKind.DOWN] = Plan(exit_code=1, output=b"no\n", leaves=("web",))
    await world.clock.run(5 * 60 + 120)
    await settle()
    now = await scrape(world.nobody)
    assert running_app_id
    assert now.value("moorage_apps_overdue") == 1
    assert now.value("moorage_apps_most_overdue_seconds") >= 60
    assert now.value("moorage_auto_stops_total", result="failed") >= 1


async def test_operation_in_flight_and_lease_holder_are_exported(
    world: World, host: FakeHost, timed_app_id: str
) -> None:
    host.hold()
    (await world.user.post(f"/api/apps/{timed_app_id}/start", Prefer="respond-async")).expect(202)
    await settle()
    now = await scrape(world.nobody)
    assert now.value("moorage_operations_in_flight", kind="up", state="running") == 1
    assert now.value("moorage_operations_queued") == 0
    assert now.value("moorage_operation_leases", holder="this") == 1
    assert now.value("moorage_operation_leases", holder="nobody") == 0
    assert now.value("moorage_controllers") == 1


async def test_requests_are_counted_by_route_without_caller_supplied_labels(world: World) -> None:
    await world.nobody.send("PROPFIND", "/coffee")
    for _ in range(3):
        (await world.user.get(f"/api/apps/{uuid4()}")).expect(404)
        await world.nobody.get(f"/nothing/{uuid4()}")
    now = await scrape(world.nobody)
    assert now.value("moorage_http_requests_total", method="GET", route="/api/apps/{id}", status="404") == 3
    assert now.value("moorage_http_request_duration_seconds_count", method="GET", route="/api/apps/{id}") == 3
    assert now.value("moorage_http_problems_total", code="app_not_found") == 3
    assert now.value("moorage_http_requests_total", route="none", method="other") == 4
    assert now.value("moorage_database_transaction_duration_seconds_count", kind="read", result="ok") > 3


async def test_failures_to_log_in_are_counted_by_reason(world: World) -> None:
    (await world.nobody.post("/api/auth/login", {"username": "admin", "password": "wrong"})).expect(401)
    (await world.nobody.get("/api/apps")).expect(401)
    (await world.nobody.get("/api/apps", Authorization="Bearer nonsense")).expect(401)
    wrong = {"currentPassword": "wrong", "newPassword": f"{PASSWORD} 2"}
    (await world.user.post("/api/auth/password", wrong)).expect(422)
    now = await scrape(world.nobody)
    for reason in ("bad_credentials", "no_token", "bad_token", "wrong_password"):
        assert now.value("moorage_authentication_failures_total", reason=reason) == 1, reason


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True, scope="session")
async def test_certificates_and_listeners_are_exported(world: World, host: FakeHost) -> None:
    assert host.reachable
    now = await scrape(world.nobody)
    begin = world.clock.now().timestamp()
    days = {
        sample.labels["certificate"]: (sample.value - begin) / 86_400
        for sample in now.families["moorage_certificate_expiry_timestamp_seconds"].samples
    }
    assert 85 < days["agents"] <= 90
    assert 3640 < days["authority"] <= 3650
    assert now.value("moorage_event_subscribers") == 0


async def test_release_and_process_are_exported(world: World) -> None:
    now = await scrape(world.nobody)
    assert now.value("moorage_build_info") == 1
    assert now.value("process_resident_memory_bytes") > 0


async def test_labels_contain_no_resource_names(world: World, host: FakeHost, running_app_id: str) -> None:
    assert host.reachable
    names: Mapping[str, str] = {"app": running_app_id, "server": "Production Server 1"}
    now = await scrape(world.nobody)
    shown = {value for sample in now.samples for value in sample.labels.values()}
    assert shown.isdisjoint(names.values())
    assert len(now.samples) < 1500
