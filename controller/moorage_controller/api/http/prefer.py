"""The `Prefer` header: how long a caller wants to wait for an operation (RFC 7240)."""

import re

from moorage_controller.api.http.call import Call
from moorage_controller.errors import OperationFailedError
from moorage_controller.store.tables.operations import Operation

_WAIT = re.compile(r"wait=(\d{1,6})")


async def await_operation(call: Call, operation: Operation) -> Operation:
    """Wait as the caller prefers: not at all, some seconds, or until the end.

    Raises OperationFailedError (`deadline_exceeded`) if the end isn't known in time, while the operation continues;
    StopWaitsError for a stop that waits for an unreachable host.
    """
    prefer = call.request.headers.get("Prefer", "")
    if "respond-async" in prefer:
        return operation
    wait = _WAIT.search(prefer)
    if wait is None and operation.waits_for_host:
        return await call.services.operations.wait_for_stop(operation)
    found = await call.services.operations.wait(operation.id, float(wait.group(1)) if wait else None)
    if found.in_flight and wait is None:
        sentence = "The operation's time is over and its end is not known: the host doesn't answer. It goes on."
        output = await call.services.outputs.text(found.id)
        raise OperationFailedError("deadline_exceeded", sentence, output=output, operation_id=str(found.id))
    return found
