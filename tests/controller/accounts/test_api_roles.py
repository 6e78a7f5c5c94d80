"""Every route with every role, from the route table itself: a new route is tested without a new test."""

import uuid

import pytest
from factories import ADMIN, PASSWORD, Api, World
from moorage_common.clock import to_millis
from moorage_controller.api import schemas
from moorage_controller.api.admin import health
from moorage_controller.api.routes import ROUTES, Route
from moorage_controller.auth.roles import Role, Scope

SQLITE_ONLY = "Who may call what is the route table's."

NAMES = [f"{route.method} {route.path}" for route in ROUTES]


def path(route: Route) -> str:
    return route.path.replace("{id}", str(uuid.uuid4()))


def of(role: Role) -> list[Route]:
    routes = [route for route in ROUTES if route.role is role]
    assert routes
    return routes


async def answer(api: Api, route: Route, data: bytes | None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return status and code of a caller's reply."""
    reply = await api.send(route.method, path(route), data=data, headers=headers)
    body = reply.json if reply.text else None
    return reply.status, body.get("code", "") if isinstance(body, dict) else ""


async def test_protected_routes_require_a_token(world: World) -> None:
    for route in of(Role.USER) + of(Role.ADMIN):
        assert await answer(world.nobody, route, b"{}") == (401, "no_token"), route
        headers = {"Authorization": "Bearer x.y.z"}
        assert await answer(world.nobody, route, b"{}", headers) == (401, "bad_token"), route


async def test_plain_user_is_refused_on_admin_routes_with_any_body(world: World) -> None:
    for route in of(Role.ADMIN):
        for data in (b"{}", b"{", b"[]", None):
            assert await answer(world.user, route, data) == (403, "forbidden"), route


async def test_plain_user_may_call_user_routes(world: World) -> None:
    # Logging out comes last: it ends what the others need.
    for route in sorted(of(Role.USER), key=lambda route: route.path.endswith("/logout")):
        body = b'{"minutes": 1}' if route.path.endswith("/extend") else b"{}"
        status, code = await answer(world.user, route, body if route.body else None)
        assert status in ({404} if "{id}" in route.path else {200, 422}), (route, code)


async def test_admin_may_call_every_route(world: World) -> None:
    for route in sorted(ROUTES, key=lambda route: route.path.endswith("/logout")):
        status, code = await answer(world.admin, route, b"{}" if route.body else None)
        assert status in {200, 404, 422}, (route, code)


async def test_public_routes_are_open_with_and_without_token(world: World) -> None:
    for route in of(Role.NOBODY):
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            status, code = await answer(world.nobody, route, b"{}" if route.body else None, headers)
            # Metrics have a token of their own, and are off without it.
            expected = 404 if route.path == "/metrics" else 422 if route.body else 200
            assert status == expected, (route, code)


async def api_token(world: World, caller: Api, scope: str, **fields: object) -> Api:
    made = (await caller.post("/api/tokens", {"name": scope, "scopes": [scope], **fields})).expect(201)
    return Api(world.nobody.session, world.nobody.url, made["token"])


async def test_api_token_is_limited_by_scope_and_role_of_its_user(world: World) -> None:
    """Each route, with a token of each scope, of an admin and of a plain user."""
    cases = [(world.admin, Role.ADMIN, s) for s in (Scope.READ, Scope.OPERATE, Scope.ADMIN)]
    cases += [(world.user, Role.USER, s) for s in (Scope.READ, Scope.OPERATE)]
    for caller, role, scope in cases:
        api = await api_token(world, caller, scope.name.lower())
        for route in of(Role.USER) + of(Role.ADMIN):
            found = await answer(api, route, b"{}" if route.body else None)
            if role < route.role:
                assert found == (403, "forbidden"), route
            elif route.scope is Scope.SESSION:
                assert found == (403, "login_needed"), route
            elif scope < route.scope:
                assert found == (403, "scope_missing"), route
            else:
                assert found[0] in {200, 404, 422}, (route, found)


async def test_revoked_tokens_are_refused_on_every_route(world: World) -> None:
    now = to_millis(world.clock.now())
    revoked = await api_token(world, world.admin, "admin")
    expired = await api_token(world, world.admin, "admin", expiresAt=now + 60_000)
    for row in (await world.admin.get("/api/tokens")).expect(200):
        if row["expiresAt"] is None:
            (await world.admin.delete(f"/api/tokens/{row['id']}")).expect(200)
    login = {"username": ADMIN, "password": PASSWORD}
    out = Api(world.nobody.session, world.nobody.url, (await world.nobody.post("/api/auth/login", login)).json["token"])
    (await out.post("/api/auth/logout")).expect(200)
    world.clock.advance(60)
    dead = [revoked, expired, out, Api(world.nobody.session, world.nobody.url, "moorage_" + "A" * 43)]
    for route in of(Role.USER) + of(Role.ADMIN):
        for api in dead:
            assert await answer(api, route, b"{}") == (401, "bad_token"), route
    world.clock.advance(24 * 3600)
    for route in of(Role.USER) + of(Role.ADMIN):
        assert await answer(world.admin, route, b"{}") == (401, "bad_token"), route


def test_each_route_has_a_scope_allowed_for_its_role() -> None:
    """A plain user's token never has the scope admin, so such a route would refuse all their tokens."""
    assert {r.scope for r in of(Role.USER)} <= {Scope.READ, Scope.OPERATE, Scope.SESSION}
    assert {r.scope for r in ROUTES if r.method == "GET" and r.role is not Role.NOBODY} == {Scope.READ}
    assert {(r.method, r.path) for r in ROUTES if r.scope is Scope.SESSION} == {
        ("POST", "/api/auth/logout"),
        ("POST", "/api/auth/password"),
        ("POST", "/api/tokens"),
        ("DELETE", "/api/tokens/{id}"),
        ("POST", "/api/users"),
        ("PUT", "/api/users/{id}"),
        ("DELETE", "/api/users/{id}"),
    }


def test_public_routes_are_exactly_these() -> None:
    open_routes = {(r.method, r.path) for r in ROUTES if r.role is Role.NOBODY}
    assert open_routes == {
        ("POST", "/api/auth/login"),
        ("POST", "/api/enroll"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_routes_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_route_without_role_cannot_be_created() -> None:
    with pytest.raises(TypeError, match="needs a role"):
        Route("GET", "/x", None, health.healthz, schemas.HealthOut)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(TypeError, match="needs a role"):
        Route("GET", "/x", 1, health.healthz, schemas.HealthOut)  # type: ignore[arg-type]  # a number is no role
