"""The route table: every route with its required role, its models and its handler."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel

from moorage_controller.api import schemas
from moorage_controller.api.accounts import auth, tokens, users
from moorage_controller.api.accounts import schemas as user_schemas
from moorage_controller.api.admin import audit, events, health, metrics
from moorage_controller.api.apps import apps, inspection, operations
from moorage_controller.api.apps import schemas as app_schemas
from moorage_controller.api.fleet import agents, enrollment, projects, servers
from moorage_controller.api.fleet import schemas as server_schemas
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply
from moorage_controller.auth.rate_limit import Limit
from moorage_controller.auth.roles import Role, Scope

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `body` is None for a route without a body. `reply` is the model of a success, `many` a list of it.

    `scope` is required of an API token besides the user's role. `limit` is the request budget that it counts against.
    `creates`: the handler supports Idempotency-Key, by `Call.once`.
    """

    method: str
    path: str
    role: Role
    handler: Handler
    reply: type[BaseModel]
    body: type[BaseModel] | None = None
    many: bool = False
    scope: Scope = Scope.ADMIN
    limit: Limit = Limit.GENERAL
    creates: bool = False

    def __post_init__(self) -> None:
        """Reject an incomplete route, so that the program can't start with one."""
        if not isinstance(self.role, Role) or not issubclass(self.reply, BaseModel):
            raise TypeError(f"{self.method} {self.path} needs a role and a reply model")
        if (self.body is not None) != (self.method in {"POST", "PUT", "PATCH"}):
            raise TypeError(f"{self.method} {self.path} needs a body model; GET and DELETE take none")
        if not isinstance(self.scope, Scope) or not isinstance(self.limit, Limit):
            raise TypeError(f"{self.method} {self.path} needs a scope and a limit")
        if self.creates and (self.method != "POST" or self.role is Role.NOBODY):
            raise TypeError(f"{self.method} {self.path} can't create: a key belongs to a user's POST")


def _get(path: str, handler: Handler, reply: type[BaseModel], *, role: Role = Role.USER, many: bool = False) -> Route:
    return Route("GET", path, role, handler, reply, many=many, scope=Scope.READ)


def _operate(path: str, handler: Handler, reply: type[BaseModel], body: type[BaseModel]) -> Route:
    return Route("POST", path, Role.USER, handler, reply, body, scope=Scope.OPERATE)


def _check(path: str, handler: Handler, reply: type[BaseModel]) -> Route:
    # It changes no more than the GET of the status, so it requires the same scope.
    return Route("POST", path, Role.USER, handler, reply, schemas.NothingIn, scope=Scope.READ)


def _create(
    path: str, handler: Handler, reply: type[BaseModel], body: type[BaseModel], *, scope: Scope = Scope.ADMIN
) -> Route:
    return Route("POST", path, Role.ADMIN, handler, reply, body, scope=scope, creates=True)


def _probe(path: str, handler: Handler) -> Route:
    return Route("GET", path, Role.NOBODY, handler, schemas.HealthOut, scope=Scope.READ, limit=Limit.NONE)


ROUTES: tuple[Route, ...] = (
    Route("POST", "/api/auth/login", Role.NOBODY, auth.login, schemas.LoginOut, schemas.LoginIn, limit=Limit.SIGN_IN),
    Route(
        "POST",
        "/api/auth/logout",
        Role.USER,
        auth.logout,
        schemas.SuccessOut,
        schemas.NothingIn,
        scope=Scope.SESSION,
    ),
    _get("/api/auth/verify", auth.verify, schemas.VerifyOut),
    Route(
        "POST",
        "/api/auth/password",
        Role.USER,
        auth.change_password,
        schemas.SuccessOut,
        user_schemas.PasswordIn,
        scope=Scope.SESSION,
        limit=Limit.SIGN_IN,
    ),
    _get("/api/tokens", tokens.list_tokens, user_schemas.TokenOut, many=True),
    Route(
        "POST",
        "/api/tokens",
        Role.USER,
        tokens.create_token,
        user_schemas.TokenMadeOut,
        user_schemas.TokenIn,
        scope=Scope.SESSION,
    ),
    Route("DELETE", "/api/tokens/{id}", Role.USER, tokens.revoke_token, schemas.DeletedOut, scope=Scope.SESSION),
    _get("/api/users", users.list_users, user_schemas.AccountOut, role=Role.ADMIN, many=True),
    _get("/api/users/{id}", users.get_user, user_schemas.AccountOut, role=Role.ADMIN),
    _get("/api/users/{id}/tokens", tokens.list_user_tokens, user_schemas.TokenOut, role=Role.ADMIN, many=True),
    # A leaked token must not create a user or a password, which would outlive the token's revocation.
    _create("/api/users", users.create_user, user_schemas.AccountOut, user_schemas.AccountIn, scope=Scope.SESSION),
    Route(
        "PUT",
        "/api/users/{id}",
        Role.ADMIN,
        users.update_user,
        user_schemas.AccountOut,
        user_schemas.AccountChanges,
        scope=Scope.SESSION,
    ),
    Route("DELETE", "/api/users/{id}", Role.ADMIN, users.delete_user, schemas.DeletedOut, scope=Scope.SESSION),
    _get("/api/servers", servers.list_servers, server_schemas.ServerOut, many=True),
    _get("/api/servers/{id}", servers.get_server, server_schemas.ServerOut),
    _create("/api/servers", servers.create_server, server_schemas.ServerOut, server_schemas.ServerIn),
    Route(
        "PUT",
        "/api/servers/{id}",
        Role.ADMIN,
        servers.update_server,
        server_schemas.ServerOut,
        server_schemas.ServerChanges,
    ),
    Route("DELETE", "/api/servers/{id}", Role.ADMIN, servers.delete_server, schemas.DeletedOut),
    _get("/api/servers/{id}/status", servers.server_status, server_schemas.ServerStatusOut),
    _check("/api/servers/{id}/test", servers.test_server, server_schemas.ServerTestOut),
    Route(
        "POST",
        "/api/servers/{id}/host-key",
        Role.ADMIN,
        servers.accept_host_key,
        server_schemas.ServerOut,
        server_schemas.HostKeyIn,
    ),
    _check("/api/servers/refresh", servers.refresh_servers, server_schemas.RefreshedOut),
    _get(
        "/api/servers/{id}/discover",
        inspection.discover_projects,
        app_schemas.ProjectFoundOut,
        role=Role.ADMIN,
        many=True,
    ),
    Route(
        "POST",
        "/api/servers/{id}/enrollment-token",
        Role.ADMIN,
        enrollment.create_join_token,
        schemas.JoinTokenOut,
        schemas.NothingIn,
    ),
    Route(
        "POST",
        "/api/servers/{id}/agent",
        Role.ADMIN,
        agents.install_agent,
        schemas.OperationShownOut,
        server_schemas.AgentIn,
    ),
    Route("DELETE", "/api/servers/{id}/agent", Role.ADMIN, agents.uninstall_agent, schemas.OperationShownOut),
    Route("POST", "/api/enroll", Role.NOBODY, enrollment.enroll, schemas.EnrollOut, schemas.EnrollIn),
    _get("/api/projects", projects.list_projects, schemas.ProjectOut, many=True),
    _get("/api/projects/{id}", projects.get_project, schemas.ProjectOut),
    _create("/api/projects", projects.create_project, schemas.ProjectOut, schemas.ProjectIn),
    Route("PUT", "/api/projects/{id}", Role.ADMIN, projects.update_project, schemas.ProjectOut, schemas.ProjectChanges),
    Route("DELETE", "/api/projects/{id}", Role.ADMIN, projects.delete_project, schemas.DeletedOut),
    _get("/api/apps", apps.list_apps, app_schemas.AppOut, many=True),
    _get("/api/apps/{id}", apps.get_app, app_schemas.AppOut),
    _create("/api/apps", apps.create_app, app_schemas.AppOut, app_schemas.AppIn),
    # A plain user may change autoStopTimeout; the service refuses all other changes.
    Route(
        "PUT",
        "/api/apps/{id}",
        Role.USER,
        apps.update_app,
        app_schemas.AppOut,
        app_schemas.AppChanges,
        scope=Scope.OPERATE,
    ),
    Route("DELETE", "/api/apps/{id}", Role.ADMIN, apps.delete_app, schemas.DeletedOut),
    _get("/api/apps/{id}/services", inspection.list_services, app_schemas.ContainerOut, many=True),
    _get("/api/apps/{id}/logs", inspection.show_logs, app_schemas.ContainerOut),
    _operate("/api/apps/{id}/start", apps.start_app, app_schemas.StartedOut, app_schemas.StartIn),
    _operate("/api/apps/{id}/stop", apps.stop_app, app_schemas.StoppedOut, app_schemas.StopIn),
    _operate("/api/apps/{id}/extend", apps.extend_app, app_schemas.AppOut, app_schemas.ExtendIn),
    _operate("/api/apps/{id}/restart", apps.restart_app, app_schemas.StartedOut, app_schemas.StartIn),
    _get("/api/operations", operations.list_operations, schemas.OperationOut, many=True),
    _get("/api/operations/{id}", operations.get_operation, schemas.OperationShownOut),
    _get("/api/operations/{id}/output", operations.follow_output, schemas.OperationOut),
    _operate("/api/operations/{id}/cancel", operations.cancel_operation, schemas.OperationOut, schemas.NothingIn),
    _get("/api/events", events.follow_events, schemas.EventOut),
    _get("/api/audit-logs", audit.list_audit_logs, schemas.AuditPageOut),
    _probe("/healthz", health.healthz),
    _probe("/readyz", health.readyz),
    # It counts against the address's budget, because its token could be guessed.
    Route("GET", "/metrics", Role.NOBODY, metrics.show_metrics, schemas.HealthOut, scope=Scope.READ),
)
