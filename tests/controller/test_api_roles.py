"""Every route and every role, from the route table itself: a new route is tested the moment it is there."""

import uuid

import pytest
from factories import World
from moorage_controller.api import health, schemas
from moorage_controller.api.routes import ROUTES, Route
from moorage_controller.auth.roles import Role

NAMES = [f"{route.method} {route.path}" for route in ROUTES]


def path(route: Route) -> str:
    return route.path.replace("{id}", str(uuid.uuid4()))


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is not Role.NOBODY], ids=str)
@pytest.mark.filterwarnings("error")
async def test_without_a_token_no_one_gets_in(world: World, route: Route) -> None:
    (await world.nobody.send(route.method, path(route), data=b"{}")).expect(401, "no_token")
    headers = {"Authorization": "Bearer x.y.z"}
    (await world.nobody.send(route.method, path(route), data=b"{}", headers=headers)).expect(401, "bad_token")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is Role.ADMIN], ids=str)
async def test_a_plain_user_is_refused_what_is_an_admin_s_whatever_he_sends(world: World, route: Route) -> None:
    for data in (b"{}", b"{", b"[]", None):
        (await world.user.send(route.method, path(route), data=data)).expect(403, "forbidden")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is Role.USER], ids=str)
async def test_a_plain_user_gets_what_is_a_user_s(world: World, route: Route) -> None:
    reply = await world.user.send(route.method, path(route), data=b"{}" if route.body else None)
    assert reply.status in {200, 404}, reply.text


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is not Role.USER], ids=str)
async def test_an_admin_gets_everything(world: World, route: Route) -> None:
    reply = await world.admin.send(route.method, path(route), data=b"{}" if route.body else None)
    assert reply.status in {200, 404, 422}, reply.text


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is Role.NOBODY], ids=str)
async def test_what_is_open_is_open_with_and_without_a_token(world: World, route: Route) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        reply = await world.nobody.send(route.method, route.path, data=b"{}" if route.body else None, headers=headers)
        assert reply.status == (422 if route.body else 200), reply.text


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
