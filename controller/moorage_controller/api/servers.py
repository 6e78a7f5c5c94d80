"""Servers over HTTP."""

from moorage_controller.api.call import Call
from moorage_controller.api.convert import given, server_out, server_status_out
from moorage_controller.api.replies import Reply, now
from moorage_controller.api.schemas import DeletedOut, ServerChanges, ServerIn


async def list_servers(call: Call) -> Reply:
    """GET /api/servers."""
    return now([server_out(s) for s in await call.services.servers.all()])


async def get_server(call: Call) -> Reply:
    """GET /api/servers/{id}."""
    return now(server_out(await call.services.servers.get(call.id())))


async def create_server(call: Call) -> Reply:
    """POST /api/servers."""
    fields = call.body(ServerIn).model_dump()
    return now(server_out(await call.services.servers.create(fields, call.actor, call.once(server_out))), 201)


async def update_server(call: Call) -> Reply:
    """PUT /api/servers/{id}."""
    changes = given(call.body(ServerChanges), nullable={"ssh_user", "api_endpoint"})
    return now(server_out(await call.services.servers.update(call.id(), changes, call.actor)))


async def delete_server(call: Call) -> Reply:
    """DELETE /api/servers/{id}."""
    await call.services.servers.delete(call.id(), call.actor)
    return now(DeletedOut(message="Server deleted"))


async def server_status(call: Call) -> Reply:
    """GET /api/servers/{id}/status."""
    return now(server_status_out(await call.services.servers.check(call.id())))
