"""The audit log over HTTP."""

from moorage_controller.api.convert import audit_entry_out
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply
from moorage_controller.api.schemas import AuditPageOut
from moorage_controller.store.tables.audit import AuditFilter


async def list_audit_logs(call: Call) -> Reply:
    """GET /api/audit-logs."""
    limit = call.query_number("limit", 100, 1, 1000)
    offset = call.query_number("offset", 0, 0, 10**9)
    wanted = AuditFilter(
        user_id=call.query_id("userId"),
        action=call.query_word("action"),
        resource_type=call.query_word("resourceType"),
        since=call.query_time("from"),
        until=call.query_time("to"),
    )
    entries, total = await call.services.audit_log.page(call.principal, wanted, limit, offset)
    logs = [audit_entry_out(entry) for entry in entries]
    page = AuditPageOut(logs=logs, total=total, limit=limit, offset=offset)
    return Reply(page, headers={"X-Total-Count": str(total)})
