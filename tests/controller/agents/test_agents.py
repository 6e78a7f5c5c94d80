"""Installation and removal of agents as an API client sees them; tests/fleet covers the hosts' side."""

import asyncio
from collections.abc import AsyncIterator

import asyncssh
import pytest
from factories import World
from moorage_lab.waiting import eventually_async

SQLITE_ONLY = "What goes over SSH, and who waits for it, hangs on no database."

KEY = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode()


@pytest.fixture
async def silent() -> AsyncIterator[int]:
    """Return the port of a silent SSH server: its callers stay in flight until it disconnects."""
    opened: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in opened:
        writer.close()


@pytest.fixture
async def server_id(world: World, silent: int) -> str:
    """Return a server to be reached over SSH at that port."""
    fields = {"address": "127.0.0.1", "sshPort": silent, "sshUser": "root", "sshPrivateKey": KEY}
    return await world.new_server(**fields)


async def test_agent_routes_require_admin_and_ssh_credentials(world: World) -> None:
    plain = await world.new_server()
    for method in ("POST", "DELETE"):
        path = f"/api/servers/{plain}/agent"
        assert (await world.user.send(method, path)).expect(403)["code"] == "forbidden"
        assert (await world.admin.send(method, path)).expect(409)["code"] == "no_credentials"
        gone = path.replace(plain, "0b0e7d0c-4f53-4a52-9d8e-6f1f5f3a1c11")
        assert (await world.admin.send(method, gone)).expect(404)["code"] == "server_not_found"
    # Nothing was required on the host: a name can always be removed.
    done = (await world.admin.send("DELETE", f"/api/servers/{plain}/agent?force=true")).expect(200)
    assert (done["kind"], done["state"]) == ("agent_uninstall", "succeeded")


@pytest.mark.parametrize("body", [{"port": 0}, {"port": "x"}, {"allowRoots": ["srv"]}, {"allowRoots": ["/srv/.."]}])
async def test_invalid_install_request_returns_422(world: World, server_id: str, body: object) -> None:
    (await world.admin.post(f"/api/servers/{server_id}/agent", body)).expect(422)


async def test_install_without_bundle_explains_how_to_get_one(world: World, server_id: str) -> None:
    failed = (await world.admin.post(f"/api/servers/{server_id}/agent")).expect(502)
    assert failed["code"] == "no_agent_bundle"
    assert "MOORAGE_AGENT_BUNDLE" in failed["detail"]


async def test_agent_removal_blocks_apps_and_resumes_on_next_controller(world: World, server_id: str) -> None:
    app_id = await world.new_app(server_id)
    begun = await world.admin.send("DELETE", f"/api/servers/{server_id}/agent", headers={"Prefer": "respond-async"})
    operation = begun.expect(202)
    assert (operation["kind"], operation["appId"], operation["serverId"]) == ("agent_uninstall", None, server_id)
    assert [entry["resourceId"] for entry in await world.audit("AGENT_UNINSTALL")] == [server_id]
    # One at a time: the same request joins, the opposite is refused; so is an app's, since its journal moves.
    again = await world.admin.send("DELETE", f"/api/servers/{server_id}/agent", headers={"Prefer": "respond-async"})
    assert again.expect(202)["id"] == operation["id"]
    other = await world.admin.post(f"/api/servers/{server_id}/agent")
    assert other.expect(409)["code"] == "operation_in_progress"
    assert (await world.user.post(f"/api/apps/{app_id}/start")).expect(409)["code"] == "server_busy"
    cancelled = await world.admin.post(f"/api/operations/{operation['id']}/cancel")
    assert cancelled.expect(409)["code"] == "not_cancellable"
    await world.restart()
    assert (await world.operation(operation["id"]))["state"] in {"queued", "running"}

    async def ended() -> bool:
        return bool((await world.operation(operation["id"]))["state"] == "failed")

    await eventually_async(ended, timeout=40, what="the end of its patience with the host")
    shown = await world.operation(operation["id"])
    assert "It failed at 'connect'" in shown["error"]


async def test_server_removal_ends_its_installation(world: World, server_id: str) -> None:
    begun = await world.admin.send("DELETE", f"/api/servers/{server_id}/agent", headers={"Prefer": "respond-async"})
    operation_id = begun.expect(202)["id"]
    (await world.admin.delete(f"/api/servers/{server_id}")).expect(200)
    await world.restart()

    async def ended() -> str:
        shown = await world.operation(operation_id)
        return str(shown["error"]) if shown["state"] == "failed" else ""

    assert "removed meanwhile" in await eventually_async(ended, timeout=20, what="its end")
