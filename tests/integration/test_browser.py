"""A dashboard in a real browser, from another origin; a page of an unknown origin gets nothing."""

import json
from collections.abc import Iterator

import pytest
from dashboard import Dashboard, chromium, served
from moorage_lab.programs.controller import ADMIN
from moorage_lab.programs.engine import PrivateEngine
from playwright.sync_api import Browser, Page, expect
from running_stack import SLEEPER, Stack


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Return where the known dashboard is served."""
    with served() as made:
        yield made


@pytest.fixture(scope="module")
def stack(
    engine: PrivateEngine, sample_image: str, origin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Return a controller that knows the dashboard, and an agent."""
    assert sample_image
    made = Stack(tmp_path_factory.mktemp("stack"), engine, {"FRONTEND_URL": origin})
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser."""
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return a page that shares nothing with others."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def dashboard(page: Page, origin: str, stack: Stack) -> Dashboard:
    """Return the known dashboard, logged in."""
    made = Dashboard(page, origin, stack.controller.url)
    body = {"username": ADMIN, "password": stack.controller.admin_password}
    login = made.fetch("POST", "/api/auth/login", body).expect(200)
    assert login["user"]["role"] == "admin"
    made.token = login["token"]
    return made


def test_dashboard_creates_reads_updates_and_deletes_resources(dashboard: Dashboard) -> None:
    for path, made_of, change in (
        ("/api/servers", {"name": "web 1", "address": "192.0.2.1"}, {"sshPort": 2222}),
        ("/api/projects", {"name": "QMS", "description": "a"}, {"description": "b"}),
    ):
        made = dashboard.fetch("POST", path, made_of).expect(201)
        assert made_of.items() <= made.items()
        one = f"{path}/{made['id']}"
        assert dashboard.fetch("GET", one).expect(200) == made
        changed = dashboard.fetch("PUT", one, change).expect(200)
        assert change.items() <= changed.items()
        assert changed in dashboard.fetch("GET", path).expect(200)
        assert dashboard.fetch("DELETE", one).expect(200)["success"] is True
        assert dashboard.fetch("GET", one).expect(404)["code"] in {"server_not_found", "project_not_found"}


def test_dashboard_runs_app_lifecycle_and_logout(dashboard: Dashboard, stack: Stack) -> None:
    folder = stack.apps / "browser"
    folder.mkdir()
    (folder / "compose.yaml").write_text(SLEEPER)
    body = {"name": "browser", "projectId": stack.project_id, "serverId": stack.server_id, "cdPath": str(folder)}
    app_id = dashboard.fetch("POST", "/api/apps", body).expect(201)["id"]
    path = f"/api/apps/{app_id}"
    assert dashboard.fetch("PUT", path, {"autoStopTimeout": 7}).expect(200)["autoStopTimeout"] == 7
    started = dashboard.fetch("POST", f"{path}/start", {"timeout": 5}).expect(200)
    assert (started["status"], started["stopAt"]) == ("running", started["startedAt"] + 5 * 60_000)
    assert stack.containers(folder, running=True) == ["web"]
    assert dashboard.fetch("GET", path).expect(200)["status"] == "running"
    # As dashboards send it: a JSON type, and no body.
    stopped = dashboard.fetch("POST", f"{path}/stop", Content_Type="application/json").expect(200)
    assert stopped["status"] == "stopped"
    assert stack.containers(folder) == []
    assert dashboard.fetch("DELETE", path).expect(200)["success"] is True
    assert dashboard.fetch("GET", "/api/apps").expect(200) == []
    assert dashboard.fetch("POST", "/api/auth/logout").expect(200) == {"success": True}
    assert dashboard.fetch("GET", "/api/auth/verify").expect(401)["code"] == "bad_token"


def test_script_reads_the_headers_it_needs(dashboard: Dashboard, stack: Stack) -> None:
    listed = dashboard.fetch("GET", "/api/projects?limit=1", X_Request_Id="from-a-page")
    assert listed.headers["x-total-count"] == str(len(stack.api.get("/api/projects").expect(200)))
    assert listed.headers["x-request-id"] == "from-a-page"
    known = dashboard.fetch("GET", "/api/projects?limit=1", If_None_Match=listed.headers["etag"])
    assert (known.status, known.text) == (304, "")
    keyed = [dashboard.fetch("POST", "/api/projects", {"name": "k"}, Idempotency_Key="k") for _ in range(2)]
    assert keyed[0].expect(201) == keyed[1].expect(201)
    assert [reply.headers.get("idempotency-replayed") for reply in keyed] == [None, "true"]
    app_id = stack.make_app("headers", SLEEPER)
    later = dashboard.fetch("POST", f"/api/apps/{app_id}/start", Prefer="respond-async")
    assert later.headers["location"] == f"/api/operations/{later.expect(202)['id']}"
    stack.wait_app(app_id, status="running", operationId=None)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    guess = {"username": "somebody", "password": "guessed"}
    replies = [dashboard.fetch("POST", "/api/auth/login", guess) for _ in range(6)]
    assert [reply.status for reply in replies] == [401] * 5 + [429]
    assert int(replies[-1].headers["retry-after"]) >= 1


def test_browser_sends_preflight_requests(dashboard: Dashboard, stack: Stack) -> None:
    dashboard.fetch("GET", "/api/projects").expect(200)
    log = [json.loads(line) for line in stack.controller.process.log.read_text().splitlines() if line.startswith("{")]
    asked = [entry for entry in log if entry.get("method") == "OPTIONS"]
    assert "/api/projects" in {entry["path"] for entry in asked}
    assert {entry["status"] for entry in asked} == {204}


def test_page_of_unknown_origin_reads_and_changes_nothing(page: Page, dashboard: Dashboard, stack: Stack) -> None:
    before = stack.api.get("/api/projects").expect(200)
    with served() as elsewhere:
        stranger = Dashboard(page, elsewhere, stack.controller.url)
        # A simple request without a token: it is answered, and the browser hides the reply.
        assert stranger.call("GET", "/healthz") is None
        stranger.token = dashboard.token
        assert stranger.call("GET", "/api/projects") is None
        assert stranger.call("POST", "/api/projects", {"name": "evil"}) is None
        body = {"username": ADMIN, "password": stack.controller.admin_password}
        assert stranger.call("POST", "/api/auth/login", body) is None
    assert stack.api.get("/api/projects").expect(200) == before


def test_docs_page_calls_only_the_api(page: Page, stack: Stack) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{stack.controller.url}/api/docs")
    routes = page.locator("main details.route")
    expect(routes.first).to_be_visible()
    document = stack.api.get("/api/openapi.json").expect(200)
    assert routes.count() == sum(len(methods) for methods in document["paths"].values())
    page.get_by_label("Token").fill(stack.api.token or "")
    for name, typed, wanted in (
        ("create_project", {"body (JSON)": '{"name": "typed"}', "Idempotency-Key": "typed"}, "201 Created"),
        ("list_projects", {"limit": "1000"}, "200 OK"),
        ("get_server", {"id": stack.server_id}, "200 OK"),
    ):
        operation = page.locator(f"details.route:has([id^='{name}-'])")
        operation.locator("summary").first.click()
        for label, text in typed.items():
            operation.get_by_label(label).fill(text)
        operation.get_by_role("button").click()
        expect(operation.get_by_role("status")).to_contain_text(wanted)
    expect(page.locator("details.route:has([id^='list_projects-'])").get_by_role("status")).to_contain_text("typed")
    assert "typed" in {project["name"] for project in stack.api.get("/api/projects").expect(200)}
    assert complaints == []
    assert {url.partition("/api/")[0] for url in asked} == {stack.controller.url}
