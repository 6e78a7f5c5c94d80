"""Installation, upgrade and removal of agents over HTTP."""

from moorage_controller.api.convert import operation_out, operation_shown_out, raise_unless_succeeded
from moorage_controller.api.fleet.schemas import AgentIn
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.prefer import await_operation
from moorage_controller.api.http.replies import Reply, accepted, ok
from moorage_controller.store.tables.operations import Operation


async def install_agent(call: Call) -> Reply:
    """POST /api/servers/{id}/agent."""
    body = call.body(AgentIn)
    return await _reply(call, await call.services.agents.install(call.id(), call.actor, body.port, body.allow_roots))


async def uninstall_agent(call: Call) -> Reply:
    """DELETE /api/servers/{id}/agent."""
    force = call.query_flag("force")
    return await _reply(call, await call.services.agents.uninstall(call.id(), call.actor, force=force))


async def _reply(call: Call, begun: Operation) -> Reply:
    operation = await await_operation(call, begun)
    if operation.in_flight:
        return accepted(operation_out(operation), operation.id)
    output = await call.services.outputs.text(operation.id)
    raise_unless_succeeded(operation, output)
    return ok(operation_shown_out(operation, output))
