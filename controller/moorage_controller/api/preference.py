"""How long a caller wants to wait for an operation (RFC 7240)."""

import re

from moorage_controller.api.call import Call
from moorage_controller.store.operations import Operation

_WAIT = re.compile(r"wait=(\d{1,6})")


async def ended(call: Call, operation: Operation) -> Operation:
    """Wait as the caller prefers: not at all, some seconds, or for the end."""
    prefer = call.request.headers.get("Prefer", "")
    if "respond-async" in prefer:
        return operation
    wait = _WAIT.search(prefer)
    return await call.services.operations.wait(operation.id, float(wait.group(1)) if wait else None)
