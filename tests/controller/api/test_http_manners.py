"""Behaviour that uptime monitors, load balancers and browsers expect of an HTTP server."""

import aiohttp
import pytest
from factories import World
from moorage_controller.api.routes import ROUTES

PLAIN = [route.path for route in ROUTES if route.method == "GET" and "{" not in route.path and route.path != "/metrics"]


@pytest.mark.parametrize("path", PLAIN)
async def test_head_matches_get_without_body(world: World, path: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.head(world.user.url + path, headers={"Authorization": f"Bearer {world.admin.token}"}) as reply,
    ):
        assert reply.status == 200
        assert await reply.read() == b""


async def test_trailing_slash_is_redirected_permanently(world: World, app_id: str) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {world.user.token}"}) as session:
        async with session.get(f"{world.user.url}/api/apps/?limit=1", allow_redirects=False) as reply:
            assert (reply.status, reply.headers["Location"]) == (308, "/api/apps?limit=1")
            assert (await reply.json())["code"] == "moved"
        async with session.post(f"{world.user.url}/api/apps/{app_id}/start/", json={"minutes": 5}) as reply:
            assert reply.status == 200
        async with session.get(f"{world.user.url}//evil.example/", allow_redirects=False) as reply:
            assert reply.status == 404


async def test_root_path_names_the_api(world: World) -> None:
    shown = (await world.user.get("/")).expect(200)
    assert "/api" in shown["message"]
    assert shown["docs"].endswith("/api/docs")
