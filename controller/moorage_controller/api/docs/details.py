"""Details of routes for the OpenAPI document beyond the route table; common errors follow from the table itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage_controller.api.http.query_forms import FLAGS

UNCACHED = frozenset(
    {
        "/api/auth/verify",
        "/api/servers/{id}/status",
        "/api/servers/{id}/discover",
        "/api/apps/{id}/services",
        "/api/apps/{id}/logs",
        "/api/operations/{id}/output",
        "/api/events",
        "/healthz",
        "/readyz",
        "/metrics",
    }
)
"""GETs without an ETag: those that are computed for each request, and streams."""
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class RouteDocs:
    """One route's own errors (status to codes), query parameters (name to schema and sentence), and example.

    `media` are the media types of a success that isn't JSON.
    """

    status: int = 200
    errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    query: Mapping[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    asynchronous: bool = False
    request: dict[str, Any] | None = None
    reply: Any = None
    media: tuple[str, ...] = ()


_ID = {"type": "string", "format": "uuid"}
_WORD = {"type": "string", "maxLength": 100, "pattern": "^[ -~]*$"}
_TIME = {"type": "string"}
_FLAG = {"type": "string", "enum": list(FLAGS)}
_SERVER = {"name": "Production Server 1", "address": "192.168.1.100", "sshUser": "root", "sshPort": 22}
_SSH_CODES = (
    "ssh_login_refused",
    "ssh_key_unreadable",
    "host_key_changed",
    "host_strange",
    "no_shell",
    "host_tools_missing",
    "password_expired",
    "ssh_sessions_too_few",
    "login_shell_slow",
)
"""Reasons why a host can't be used over SSH."""
_RUN_ERRORS: dict[int, tuple[str, ...]] = {
    409: (
        "operation_in_progress",
        "server_busy",
        "directory_taken",
        "directory_busy",
        "project_busy",
        "project_taken",
        "other_files",
        "operation_cancelled",
        "cancelled",
    ),
    502: (
        "operation_failed",
        "operation_lost",
        "compose_failed",
        "compose_crashed",
        "exited_early",
        "port_taken",
        "engine_lost",
        "directory_hangs",
        "directory_missing",
        "not_a_directory",
        "unreadable_compose_file",
        "policy_unreadable",
        "invalid_request",
        "agent_too_old",
        "host_said_too_much",
        "compose_missing",
        "compose_v1",
        *_SSH_CODES,
    ),
    503: (
        "host_unreachable",
        "no_agent",
        "engine_unreachable",
        "journal_full",
        "journal_unavailable",
        "deadlines_not_kept",
    ),
    504: ("deadline_exceeded",),
    403: ("path_not_allowed", "provider_not_allowed", "remote_resource_not_allowed", "bind_mount_not_allowed"),
}

_ASK_ERRORS: dict[int, tuple[str, ...]] = {
    503: (
        "host_unreachable",
        "no_agent",
        "engine_unreachable",
        "directory_hangs",
        "policy_unreadable",
        "invalid_request",
        "agent_too_old",
        "agent_fault",
        "host_said_too_much",
        *_SSH_CODES,
    ),
    403: ("path_not_allowed",),
}
_TELL_CODES = ("host_unreachable", "deadlines_not_kept", "agent_fault")
"""Errors of a deadline that can't be sent to an agent."""
_AGENT_ERRORS: dict[int, tuple[str, ...]] = {
    409: ("operation_in_progress", "no_credentials"),
    502: (
        "server_not_found",
        "operation_failed",
        "root_needed",
        "installed_by_package",
        "no_systemd",
        "wrong_machine",
        "no_room",
        "port_taken",
        "clock_off",
        "upload_failed",
        "install_failed",
        "agent_broken",
        "no_dial_back",
        *_SSH_CODES,
        "no_snapshot",
        "rollback_failed",
        "no_agent_bundle",
    ),
    503: ("host_unreachable",),
    504: ("deadline_exceeded",),
}

DETAILS: Mapping[tuple[str, str], RouteDocs] = {
    ("POST", "/api/auth/login"): RouteDocs(
        errors={401: ("bad_credentials",)},
        request={"username": "admin", "password": "admin123"},
        reply={
            "user": {"id": "0b0e7d0c-4f53-4a52-9d8e-6f1f5f3a1c11", "username": "admin", "role": "admin"},
            "token": "eyJhbGciOiJIUzI1NiIs...",
        },
    ),
    ("POST", "/api/auth/logout"): RouteDocs(errors={403: ("login_needed",)}, reply={"success": True}),
    ("POST", "/api/auth/password"): RouteDocs(errors={403: ("login_needed",), 422: ("wrong_password",)}),
    ("POST", "/api/tokens"): RouteDocs(
        201, errors={403: ("login_needed",)}, request={"name": "CI", "scopes": ["read", "operate"]}
    ),
    ("DELETE", "/api/tokens/{id}"): RouteDocs(errors={403: ("login_needed",)}),
    ("POST", "/api/users"): RouteDocs(
        201,
        errors={403: ("login_needed",), 409: ("username_taken",)},
        request={"username": "jo", "password": "correct horse", "role": "user"},
    ),
    ("PUT", "/api/users/{id}"): RouteDocs(
        errors={403: ("own_password", "login_needed"), 409: ("last_admin", "username_taken")},
        request={"fullName": "Jo Doe"},
    ),
    ("DELETE", "/api/users/{id}"): RouteDocs(errors={403: ("login_needed",), 409: ("last_admin",)}),
    ("POST", "/api/servers"): RouteDocs(201, request=_SERVER),
    ("PUT", "/api/servers/{id}"): RouteDocs(
        errors={409: ("app_running", "undecryptable_secret")}, request={"name": "Production Server 1"}
    ),
    ("POST", "/api/servers/{id}/host-key"): RouteDocs(
        errors={409: ("host_key_differs",), 503: ("host_unreachable",)},
        request={"fingerprint": "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"},
    ),
    ("DELETE", "/api/servers/{id}"): RouteDocs(errors={409: ("server_in_use",)}),
    ("GET", "/api/servers/{id}/status"): RouteDocs(
        reply={"status": "online", "runningContainers": 3, "uptime": 86400, "lastChecked": 1633024800000}
    ),
    ("POST", "/api/servers/{id}/enrollment-token"): RouteDocs(201),
    ("POST", "/api/servers/{id}/agent"): RouteDocs(
        errors=_AGENT_ERRORS, asynchronous=True, request={"port": 7443, "allowRoots": ["/srv"]}
    ),
    ("DELETE", "/api/servers/{id}/agent"): RouteDocs(
        errors=_AGENT_ERRORS,
        asynchronous=True,
        query={"force": (_FLAG, "`true` revokes also where the host is away.")},
    ),
    ("POST", "/api/enroll"): RouteDocs(
        errors={401: ("bad_join_token", "join_token_used", "join_token_expired", "join_token_unreadable")}
    ),
    ("POST", "/api/projects"): RouteDocs(201, request={"name": "QMS", "description": "Quality management"}),
    ("DELETE", "/api/projects/{id}"): RouteDocs(errors={409: ("app_running",)}),
    ("POST", "/api/apps"): RouteDocs(
        201,
        errors={409: ("directory_taken", "project_taken")},
        request={
            "name": "QMS Backend",
            "projectId": "8f14e45f-ceea-467f-9a2b-1f1f2a3b4c5d",
            "serverId": "45c48cce-2e2d-4fbd-9aa1-0c0d0e0f1011",
            "cdPath": "/home/apps/qms-backend",
            "appUrl": "http://192.168.1.100:8080",
            "autoStopTimeout": 60,
        },
    ),
    ("PUT", "/api/apps/{id}"): RouteDocs(
        errors={
            403: ("admin_only",),
            409: ("app_running", "directory_taken", "project_taken", "operation_in_progress"),
            503: _TELL_CODES,
        },
        request={"autoStopTimeout": 60},
    ),
    ("DELETE", "/api/apps/{id}"): RouteDocs(
        errors={409: ("app_running", "operation_in_progress", "server_busy"), 503: ("host_unreachable",)},
        query={"force": (_FLAG, "`true` stops a running app first.")},
    ),
    ("GET", "/api/servers/{id}/discover"): RouteDocs(errors=_ASK_ERRORS),
    ("GET", "/api/apps/{id}/services"): RouteDocs(errors=_ASK_ERRORS),
    ("GET", "/api/apps/{id}/logs"): RouteDocs(
        errors={**_ASK_ERRORS, 404: ("service_not_found",), 409: ("too_many_logs",), 429: ("too_many_streams",)},
        query={
            "tail": (
                {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 200},
                "So many of the last lines of each container.",
            ),
            "service": (_WORD, "Only the containers of one service."),
            "since": (
                _TIME,
                "Only later lines, by the host's clock: `10m`, `1h30m` ago, ISO 8601, epoch seconds or milliseconds.",
            ),
            "follow": (
                _FLAG,
                "`true`: go on, as server-sent events; a header Last-Event-ID goes on after that line.",
            ),
            "timestamps": (_FLAG, "`true`: each line's time before its text, RFC 3339 with nanoseconds."),
        },
        media=("text/plain", EVENT_STREAM),
    ),
    ("POST", "/api/apps/{id}/start"): RouteDocs(errors=_RUN_ERRORS, asynchronous=True, request={"timeout": 60}),
    ("POST", "/api/apps/{id}/restart"): RouteDocs(errors=_RUN_ERRORS, asynchronous=True, request={"timeout": 60}),
    ("POST", "/api/apps/{id}/stop"): RouteDocs(errors=_RUN_ERRORS, asynchronous=True),
    ("POST", "/api/apps/{id}/extend"): RouteDocs(
        errors={409: ("not_running", "run_too_long", "run_changed"), 503: _TELL_CODES}, request={"minutes": 30}
    ),
    ("GET", "/api/operations"): RouteDocs(
        query={
            "appId": (_ID, "Operations of one app."),
            "serverId": (_ID, "Operations on one server."),
            "state": (_WORD, "`queued`, `running`, `succeeded`, `failed`, `cancelled` or `interrupted`."),
        }
    ),
    ("GET", "/api/operations/{id}/output"): RouteDocs(
        errors={429: ("too_many_streams",)},
        query={
            "after": (
                {"type": "integer", "minimum": 0, "maximum": 10**15, "default": 0},
                "Byte offset to begin at; a header Last-Event-ID counts more.",
            )
        },
        media=(EVENT_STREAM,),
    ),
    ("POST", "/api/operations/{id}/cancel"): RouteDocs(
        errors={409: ("not_cancellable", "operation_ended"), 503: ("host_unreachable", "no_agent")}
    ),
    ("GET", "/api/events"): RouteDocs(errors={429: ("too_many_streams",)}, media=(EVENT_STREAM,)),
    ("GET", "/metrics"): RouteDocs(errors={401: ("bad_token",), 404: ("metrics_off",)}, media=("text/plain",)),
    ("GET", "/api/audit-logs"): RouteDocs(
        query={
            "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Entries on this page."),
            "offset": ({"type": "integer", "minimum": 0, "maximum": 10**9, "default": 0}, "Entries left out before."),
            "userId": (_ID, "Entries of one user."),
            "action": (_WORD, "Entries of one action, as `LOGIN` or `AUTO_STOP`."),
            "resourceType": (_WORD, "`user`, `server`, `project`, `app` or `token`."),
            "from": (_TIME, "The earliest moment: ISO 8601, epoch seconds or milliseconds."),
            "to": (_TIME, "The latest moment, included."),
        }
    ),
}
