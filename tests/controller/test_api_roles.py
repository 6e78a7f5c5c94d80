"""Every route and every role, from the route table itself: a new route is tested the moment it is there."""

import uuid

import pytest
from factories import Api, World
from moorage_controller.api import health, schemas
from moorage_controller.api.routes import ROUTES, Route
from moorage_controller.auth.roles import Role

NAMES = [f"{route.method} {route.path}" for route in ROUTES]


def path(route: Route) -> str:
    return route.path.replace("{id}", str(uuid.uuid4()))


def of(role: Role) -> list[Route]:
    routes = [route for route in ROUTES if route.role is role]
    assert routes
    return routes


async def answer(api: Api, route: Route, data: bytes | None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return status and code of what a caller gets."""
    reply = await api.send(route.method, path(route), data=data, headers=headers)
    body = reply.json
    return reply.status, body.get("code", "") if isinstance(body, dict) else ""


async def test_without_a_token_no_one_gets_in(world: World) -> None:
    for route in of(Role.USER) + of(Role.ADMIN):
        assert await answer(world.nobody, route, b"{}") == (401, "no_token"), route
        headers = {"Authorization": "Bearer x.y.z"}
        assert await answer(world.nobody, route, b"{}", headers) == (401, "bad_token"), route


async def test_a_plain_user_is_refused_what_is_an_admin_s_whatever_he_sends(world: World) -> None:
    for route in of(Role.ADMIN):
        for data in (b"{}", b"{", b"[]", None):
            assert await answer(world.user, route, data) == (403, "forbidden"), route


async def test_a_plain_user_gets_what_is_a_user_s(world: World) -> None:
    # Logging out comes last: it ends what the others need.
    for route in sorted(of(Role.USER), key=lambda route: route.path.endswith("/logout")):
        status, code = await answer(world.user, route, b"{}" if route.body else None)
        assert status == (404 if "{id}" in route.path else 200), (route, code)


async def test_an_admin_gets_everything(world: World) -> None:
    for route in sorted(ROUTES, key=lambda route: route.path.endswith("/logout")):
        status, code = await answer(world.admin, route, b"{}" if route.body else None)
        assert status in {200, 404, 422}, (route, code)


async def test_what_is_open_is_open_with_and_without_a_token(world: World) -> None:
    for route in of(Role.NOBODY):
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            status, code = await answer(world.nobody, route, b"{}" if route.body else None, headers)
            assert status == (422 if route.body else 200), (route, code)


def test_nobody_s_routes_are_these_and_no_more() -> None:
    open_routes = {(r.method, r.path) for r in ROUTES if r.role is Role.NOBODY}
    assert open_routes == {
        ("POST", "/api/auth/login"),
        ("POST", "/api/enroll"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }


def test_no_route_is_there_twice() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_a_route_that_doesn_t_say_who_may_call_it_can_t_be_made() -> None:
    with pytest.raises(TypeError, match="needs a role"):
        Route("GET", "/x", None, health.healthz, schemas.HealthOut)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(TypeError, match="needs a role"):
        Route("GET", "/x", 1, health.healthz, schemas.HealthOut)  # type: ignore[arg-type]  # a number is no role
