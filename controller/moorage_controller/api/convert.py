"""Conversion of the services' results to the models of the API."""

from collections.abc import Sequence
from datetime import datetime

from moorage_common.clock import to_millis
from moorage_common.compose.output import remarks
from moorage_common.docker.states import OperationKind
from pydantic import BaseModel

from moorage_controller.api.apps.schemas import AppOut, StartedOut, StoppedOut
from moorage_controller.api.fleet.schemas import RefreshedOut, ServerOut, ServerStatusOut, ServerTestOut
from moorage_controller.api.schemas import AuditEntryOut, OperationOut, OperationShownOut, ProjectOut
from moorage_controller.errors import OperationFailedError
from moorage_controller.hosts.credentials import fingerprint
from moorage_controller.services.runs.transitions import LastResult, shown_timeout
from moorage_controller.store.tables.apps import AppView
from moorage_controller.store.tables.audit import AuditEntry
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.projects import Project
from moorage_controller.store.tables.servers import Server

_LEFT_NOTHING: dict[str, str] = {
    LastResult.COMPLETED: "Application completed: all its containers have exited with code 0, and nothing runs now",
    LastResult.NOTHING_STARTED: "Nothing was started: the app's files have no service that is to have a "
    "container (each has 0 replicas, a provider, or a profile that isn't active)",
}


def given(changes: BaseModel, nullable: set[str]) -> dict[str, object]:
    """Return the fields a caller sent. Absent means unchanged, and so does null unless the field is `nullable`."""
    sent = changes.model_dump(include=changes.model_fields_set)
    return {name: value for name, value in sent.items() if value is not None or name in nullable}


def millis(moment: datetime | None) -> int | None:
    """Return a time in epoch milliseconds; None if there is none."""
    return None if moment is None else to_millis(moment)


def server_out(server: Server) -> ServerOut:
    """Convert a server."""
    return ServerOut(
        id=server.id,
        name=server.name,
        address=server.address,
        ssh_user=server.ssh_user,
        ssh_port=server.ssh_port,
        status=server.status,
        running_apps_count=server.running_apps_count,
        last_checked=millis(server.last_checked),
        connection=server.connection,
        api_endpoint=server.api_endpoint,
        agent_version=server.agent_version,
        status_detail=_status_detail(server),
        running_containers=server.running_containers,
        uptime=server.uptime,
        has_credentials=server.encrypted_credentials is not None,
        keeps_deadlines=server.keeps_deadlines,
        host_key_fingerprint=fingerprint(server.host_key) if server.host_key else None,
    )


def _status_detail(server: Server) -> str | None:
    if server.status_detail is None and server.fallback:
        return f"{server.fallback}. Until it answers, the host is reached by SSH."
    return server.status_detail


def server_status_out(server: Server) -> ServerStatusOut:
    """Convert a server's status."""
    return ServerStatusOut(
        status=server.status,
        running_containers=server.running_containers if server.status == "online" else 0,
        uptime=server.uptime,
        last_checked=millis(server.last_checked),
    )


def server_test_out(server: Server) -> ServerTestOut:
    """Convert the result of a server's check, with a sentence."""
    return ServerTestOut(
        **server_status_out(server).model_dump(exclude={"uptime"}),
        running_apps_count=server.running_apps_count,
        message=server.status_detail or "The host answers.",
    )


def refreshed_out(servers: Sequence[Server]) -> RefreshedOut:
    """Convert all servers after their checks."""
    online = sum(server.status == "online" for server in servers)
    return RefreshedOut(
        message=f"{online} of {len(servers)} servers are online.", servers=[server_out(server) for server in servers]
    )


def project_out(project: Project) -> ProjectOut:
    """Convert a project."""
    return ProjectOut(
        id=project.id, name=project.name, description=project.description, created_at=to_millis(project.created_at)
    )


def app_out(view: AppView) -> AppOut:
    """Convert an app; the deadline of a provisional run is hidden: `stopAt` is null until the app runs."""
    app = view.app
    running = app.started_at is not None
    return AppOut(
        id=app.id,
        name=app.name,
        project_id=app.project_id,
        server_id=app.server_id,
        cd_path=app.cd_path,
        compose_files=list(app.compose_files),
        app_url=app.app_url,
        auto_stop_timeout=shown_timeout(app),
        default_timeout=app.auto_stop_timeout,
        status=app.status,
        started_at=millis(app.started_at),
        domain=app.domain,
        stop_at=millis(app.stop_at) if running else None,
        health=app.health,
        health_detail=app.health_detail,
        observed_at=millis(app.observed_at),
        last_error=app.last_error,
        last_result=app.last_result,
        operation_id=view.operation_id,
        overdue=app.overdue,
    )


def operation_out(operation: Operation) -> OperationOut:
    """Convert an operation."""
    return OperationOut(
        id=operation.id,
        kind=operation.kind,
        app_id=operation.app_id,
        server_id=operation.server_id,
        state=operation.state,
        actor=operation.actor,
        transport=operation.transport,
        created_at=to_millis(operation.created_at),
        started_at=millis(operation.started_at),
        finished_at=millis(operation.finished_at),
        exit_code=operation.exit_code,
        error=operation.error,
    )


def operation_shown_out(operation: Operation, output: str) -> OperationShownOut:
    """Convert an operation with its output."""
    return OperationShownOut(**operation_out(operation).model_dump(), output=output)


def raise_unless_succeeded(operation: Operation, output: str) -> None:
    """Raise OperationFailedError, with Compose's output, for an operation that didn't succeed."""
    if operation.state != "succeeded":
        raise OperationFailedError(
            operation.error_code or "operation_failed",
            operation.error or "The operation failed.",
            output=output,
            operation_id=str(operation.id),
        )


def started_out(view: AppView, operation: Operation, kind: OperationKind, output: str) -> StartedOut:
    """Convert a successful start or restart."""
    app = app_out(view)
    done = "restarted" if kind is OperationKind.RESTART else "started"
    message = _LEFT_NOTHING.get(app.last_result or "", f"Application {done} successfully")
    return StartedOut(
        success=True,
        app_id=app.id,
        status=app.status,
        started_at=app.started_at,
        message=_message(message, output),
        stop_at=app.stop_at,
        timer_ends_at=app.stop_at,
        app_url=app.app_url,
        operation_id=operation.id,
        output=output,
    )


def stopped_out(view: AppView, operation: Operation, output: str) -> StoppedOut:
    """Convert a successful stop."""
    return StoppedOut(
        success=True,
        app_id=view.app.id,
        status=view.app.status,
        message=_message("Application stopped successfully", output),
        operation_id=operation.id,
        output=output,
    )


def _message(done: str, output: str) -> str:
    """Return the sentence of a success, followed by Compose's remarks."""
    left = remarks(output)
    return f"{done}. {' '.join(left)}" if left else done


def iso(moment: datetime) -> str:
    """Return a time in the form of users and audit entries: ISO 8601, UTC, milliseconds, Z."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def audit_entry_out(entry: AuditEntry) -> AuditEntryOut:
    """Convert an audit entry; entries never change, so both times are equal."""
    moment = iso(entry.created_at)
    return AuditEntryOut(
        id=entry.id,
        user_id=entry.user_id,
        username=entry.username,
        action=entry.action,
        resource_type=entry.resource_type,
        resource_id=entry.resource_id,
        resource_name=entry.resource_name,
        details=entry.message,
        data=entry.details,
        ip_address=entry.ip_address,
        user_agent=entry.user_agent,
        created_at=moment,
        updated_at=moment,
    )
