"""THE table: every route with the role it asks for, its models and its handler."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel

from moorage_controller.api import apps, audit, auth, enrollment, health, operations, projects, schemas, servers
from moorage_controller.api.call import Call
from moorage_controller.api.replies import Reply
from moorage_controller.auth.roles import Role

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `body` None: it takes none; `reply` is what a success shows; a list of it where `many`."""

    method: str
    path: str
    role: Role
    handler: Handler
    reply: type[BaseModel]
    body: type[BaseModel] | None = None
    many: bool = False

    def __post_init__(self) -> None:
        """Refuse a route that doesn't say who may call it: the program must not start with one."""
        if not isinstance(self.role, Role) or not issubclass(self.reply, BaseModel):
            raise TypeError(f"{self.method} {self.path} needs a role and a reply model")
        if (self.body is not None) != (self.method in {"POST", "PUT", "PATCH"}):
            raise TypeError(f"{self.method} {self.path} needs a body model; GET and DELETE take none")


def _get(path: str, handler: Handler, reply: type[BaseModel], *, role: Role = Role.USER, many: bool = False) -> Route:
    return Route("GET", path, role, handler, reply, many=many)


ROUTES: tuple[Route, ...] = (
    Route("POST", "/api/auth/login", Role.NOBODY, auth.login, schemas.LoginOut, schemas.LoginIn),
    Route("POST", "/api/auth/logout", Role.USER, auth.logout, schemas.SuccessOut, schemas.NothingIn),
    _get("/api/auth/verify", auth.verify, schemas.VerifyOut),
    _get("/api/servers", servers.list_servers, schemas.ServerOut, many=True),
    _get("/api/servers/{id}", servers.get_server, schemas.ServerOut),
    Route("POST", "/api/servers", Role.ADMIN, servers.create_server, schemas.ServerOut, schemas.ServerIn),
    Route("PUT", "/api/servers/{id}", Role.ADMIN, servers.update_server, schemas.ServerOut, schemas.ServerChanges),
    Route("DELETE", "/api/servers/{id}", Role.ADMIN, servers.delete_server, schemas.DeletedOut),
    _get("/api/servers/{id}/status", servers.server_status, schemas.ServerStatusOut),
    Route(
        "POST",
        "/api/servers/{id}/enrollment-token",
        Role.ADMIN,
        enrollment.create_token,
        schemas.JoinTokenOut,
        schemas.NothingIn,
    ),
    Route("POST", "/api/enroll", Role.NOBODY, enrollment.enroll, schemas.EnrollOut, schemas.EnrollIn),
    _get("/api/projects", projects.list_projects, schemas.ProjectOut, many=True),
    _get("/api/projects/{id}", projects.get_project, schemas.ProjectOut),
    Route("POST", "/api/projects", Role.ADMIN, projects.create_project, schemas.ProjectOut, schemas.ProjectIn),
    Route("PUT", "/api/projects/{id}", Role.ADMIN, projects.update_project, schemas.ProjectOut, schemas.ProjectChanges),
    Route("DELETE", "/api/projects/{id}", Role.ADMIN, projects.delete_project, schemas.DeletedOut),
    _get("/api/apps", apps.list_apps, schemas.AppOut, many=True),
    _get("/api/apps/{id}", apps.get_app, schemas.AppOut),
    Route("POST", "/api/apps", Role.ADMIN, apps.create_app, schemas.AppOut, schemas.AppIn),
    # A plain user may change autoStopTimeout; the service refuses him the rest.
    Route("PUT", "/api/apps/{id}", Role.USER, apps.update_app, schemas.AppOut, schemas.AppChanges),
    Route("DELETE", "/api/apps/{id}", Role.ADMIN, apps.delete_app, schemas.DeletedOut),
    Route("POST", "/api/apps/{id}/start", Role.USER, apps.start_app, schemas.StartedOut, schemas.StartIn),
    Route("POST", "/api/apps/{id}/stop", Role.USER, apps.stop_app, schemas.StoppedOut, schemas.NothingIn),
    Route("POST", "/api/apps/{id}/restart", Role.USER, apps.restart_app, schemas.StartedOut, schemas.StartIn),
    _get("/api/operations", operations.list_operations, schemas.OperationOut, many=True),
    _get("/api/operations/{id}", operations.get_operation, schemas.OperationOut),
    Route(
        "POST",
        "/api/operations/{id}/cancel",
        Role.USER,
        operations.cancel_operation,
        schemas.OperationOut,
        schemas.NothingIn,
    ),
    _get("/api/audit-logs", audit.list_audit_logs, schemas.AuditPageOut),
    _get("/healthz", health.healthz, schemas.HealthOut, role=Role.NOBODY),
    _get("/readyz", health.readyz, schemas.HealthOut, role=Role.NOBODY),
)
