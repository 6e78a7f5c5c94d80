"""Apps over HTTP: their records, starts, stops and extensions."""

from moorage_common.clock import from_millis
from moorage_common.docker.states import OperationKind

from moorage_controller.api.apps.schemas import AppChanges, AppIn, ExtendIn, StartIn, StopIn
from moorage_controller.api.convert import (
    app_out,
    given,
    operation_out,
    raise_unless_succeeded,
    started_out,
    stopped_out,
)
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.prefer import await_operation
from moorage_controller.api.http.replies import Reply, accepted, ok
from moorage_controller.api.schemas import DeletedOut


async def list_apps(call: Call) -> Reply:
    """GET /api/apps."""
    return ok([app_out(view) for view in await call.services.apps.all()])


async def get_app(call: Call) -> Reply:
    """GET /api/apps/{id}."""
    return ok(app_out(await call.services.apps.get(call.id())))


async def create_app(call: Call) -> Reply:
    """POST /api/apps."""
    fields = call.body(AppIn).model_dump()
    return ok(app_out(await call.services.apps.create(fields, call.actor, call.once(app_out))), 201)


async def update_app(call: Call) -> Reply:
    """PUT /api/apps/{id}."""
    changes = given(call.body(AppChanges), nullable={"app_url"})
    timeout_only = not call.principal.may_administer
    return ok(app_out(await call.services.apps.update(call.id(), changes, call.actor, timeout_only=timeout_only)))


async def delete_app(call: Call) -> Reply:
    """DELETE /api/apps/{id}."""
    force = call.query_flag("force")
    await call.services.apps.delete(call.id(), call.actor, force=force)
    return ok(DeletedOut(message="Application deleted"))


async def start_app(call: Call) -> Reply:
    """POST /api/apps/{id}/start."""
    return await _start(call, OperationKind.UP)


async def restart_app(call: Call) -> Reply:
    """POST /api/apps/{id}/restart."""
    return await _start(call, OperationKind.RESTART)


async def stop_app(call: Call) -> Reply:
    """POST /api/apps/{id}/stop."""
    cancel_start = call.body(StopIn).cancel_start
    operation = await await_operation(
        call, await call.services.apps.stop(call.id(), call.actor, cancel_start=cancel_start)
    )
    if operation.in_flight:
        return accepted(operation_out(operation), operation.id)
    output = await call.services.outputs.text(operation.id)
    raise_unless_succeeded(operation, output)
    return ok(stopped_out(await call.services.apps.get(call.id()), operation, output))


async def extend_app(call: Call) -> Reply:
    """POST /api/apps/{id}/extend: move the end of the current run."""
    body = call.body(ExtendIn)
    until = None if body.until is None else from_millis(body.until)
    return ok(app_out(await call.services.extensions.extend(call.id(), call.actor, minutes=body.minutes, until=until)))


async def _start(call: Call, kind: OperationKind) -> Reply:
    minutes = call.body(StartIn).length
    operation = await await_operation(call, await call.services.apps.start(call.id(), call.actor, minutes, kind))
    if operation.in_flight:
        return accepted(operation_out(operation), operation.id)
    output = await call.services.outputs.text(operation.id)
    raise_unless_succeeded(operation, output)
    return ok(started_out(await call.services.apps.get(call.id()), operation, kind, output))
