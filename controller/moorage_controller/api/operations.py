"""Operations over HTTP."""

from moorage_controller.api.call import Call
from moorage_controller.api.convert import operation_out, operation_shown_out
from moorage_controller.api.replies import MOST_A_PAGE, Reply, now


async def list_operations(call: Call) -> Reply:
    """GET /api/operations."""
    found, total = await call.services.operations.search(
        call.query_id("appId"),
        call.query_id("serverId"),
        call.query_word("state"),
        call.query_number("limit", 200, 1, MOST_A_PAGE),
        call.query_number("offset", 0, 0, 10**9),
    )
    return Reply([operation_out(o) for o in found], headers={"X-Total-Count": str(total)})


async def get_operation(call: Call) -> Reply:
    """GET /api/operations/{id}."""
    return now(operation_shown_out(await call.services.operations.get(call.id())))


async def cancel_operation(call: Call) -> Reply:
    """POST /api/operations/{id}/cancel."""
    return now(operation_out(await call.services.operations.cancel(call.id(), call.actor)))
