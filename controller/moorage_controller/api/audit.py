"""The audit log over HTTP."""

from moorage_controller.api.call import Call
from moorage_controller.api.convert import audit_entry_out
from moorage_controller.api.replies import Reply, now
from moorage_controller.api.schemas import AuditPageOut


async def list_audit_logs(call: Call) -> Reply:
    """GET /api/audit-logs."""
    limit = call.query_number("limit", 100, 1, 1000)
    offset = call.query_number("offset", 0, 0, 10**9)
    entries, total = await call.services.audit_log.page(call.principal, limit, offset)
    logs = [audit_entry_out(entry) for entry in entries]
    return now(AuditPageOut(logs=logs, total=total, limit=limit, offset=offset))
