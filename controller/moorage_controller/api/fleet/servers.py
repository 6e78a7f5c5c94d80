"""Servers over HTTP."""

from moorage_controller.api.convert import given, refreshed_out, server_out, server_status_out, server_test_out
from moorage_controller.api.fleet.schemas import SECRETS, HostKeyIn, ServerChanges, ServerIn
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import DeletedOut


async def list_servers(call: Call) -> Reply:
    """GET /api/servers."""
    return ok([server_out(s) for s in await call.services.servers.all()])


async def get_server(call: Call) -> Reply:
    """GET /api/servers/{id}."""
    return ok(server_out(await call.services.servers.get(call.id())))


async def create_server(call: Call) -> Reply:
    """POST /api/servers."""
    body = call.body(ServerIn)
    fields = body.model_dump(exclude=set(SECRETS))
    once = call.once(server_out)
    return ok(server_out(await call.services.servers.create(fields, body.secrets(), call.actor, once)), 201)


async def update_server(call: Call) -> Reply:
    """PUT /api/servers/{id}."""
    body = call.body(ServerChanges)
    sent = given(body, nullable={"ssh_user", "api_endpoint"})
    changes = {name: value for name, value in sent.items() if name not in SECRETS}
    return ok(server_out(await call.services.servers.update(call.id(), changes, body.secrets(), call.actor)))


async def delete_server(call: Call) -> Reply:
    """DELETE /api/servers/{id}."""
    await call.services.servers.delete(call.id(), call.actor)
    return ok(DeletedOut(message="Server deleted"))


async def server_status(call: Call) -> Reply:
    """GET /api/servers/{id}/status."""
    return ok(server_status_out(await call.services.checks.check(call.id())))


async def test_server(call: Call) -> Reply:
    """POST /api/servers/{id}/test."""
    return ok(server_test_out(await call.services.checks.check(call.id())))


async def accept_host_key(call: Call) -> Reply:
    """POST /api/servers/{id}/host-key."""
    wanted = call.body(HostKeyIn).fingerprint
    return ok(server_out(await call.services.host_keys.accept(call.id(), wanted, call.actor)))


async def refresh_servers(call: Call) -> Reply:
    """POST /api/servers/refresh."""
    return ok(refreshed_out(await call.services.checks.check_all()))
