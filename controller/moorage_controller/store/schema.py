"""The database schema. The first five tables have all fields of their resources in docs/guide.md."""

from typing import Any
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)

from moorage_controller.store.database.types import EncryptedText, JsonObject, TextTuple, UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> Column[Any]:
    return Column("id", Uuid(), primary_key=True, default=uuid4)


_IN_FLIGHT = "state IN ('queued', 'running')"
_ON_AN_AGENT = "kind IN ('agent_install', 'agent_uninstall')"


def _unique_where(name: str, column: str, condition: str) -> Index:
    return Index(name, column, unique=True, sqlite_where=text(condition), postgresql_where=text(condition))


def _time(name: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, UtcDateTime(), nullable=nullable)


users = Table(
    "users",
    metadata,
    _id(),
    Column("username", String(255), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),
    Column("role", String(50), CheckConstraint("role IN ('admin', 'user')", name="role"), nullable=False),
    Column("email", String(255)),
    Column("full_name", String(255)),
    Column("is_active", Boolean(), nullable=False, server_default=text("true")),
    _time("last_login_at"),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
)

servers = Table(
    "servers",
    metadata,
    _id(),
    Column("name", String(255), nullable=False),
    Column("address", String(255), nullable=False),
    Column("ssh_user", String(255)),
    Column("ssh_port", Integer(), nullable=False, server_default=text("22")),
    Column("api_endpoint", String(255)),
    Column("encrypted_credentials", EncryptedText()),
    Column("host_key", Text()),
    Column(
        "status",
        String(50),
        CheckConstraint("status IN ('online', 'offline', 'checking')", name="status"),
        nullable=False,
        server_default="offline",
    ),
    Column("running_apps_count", Integer(), nullable=False, server_default=text("0")),
    _time("last_checked"),
    Column("status_detail", Text()),
    Column("running_containers", Integer(), nullable=False, server_default=text("0")),
    Column("uptime", Integer()),
    Column("agent_name", String(255)),
    Column("agent_version", String(50)),
    # Over SSH, operations on a host with an agent use the agent's journal.
    Column("agent_journal", Text()),
    Column("fallback", Text()),
    # Whether its agent keeps deadlines and stops apps by itself if no controller does.
    Column("keeps_deadlines", Boolean(), nullable=False, server_default=text("false")),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
)

projects = Table(
    "projects",
    metadata,
    _id(),
    Column("name", String(255), nullable=False),
    Column("description", Text()),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
)

apps = Table(
    "apps",
    metadata,
    _id(),
    Column("name", String(255), nullable=False),
    Column("project_id", ForeignKey("projects.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("server_id", ForeignKey("servers.id", ondelete="RESTRICT"), nullable=False, index=True),
    Column("cd_path", String(500), nullable=False),
    Column("compose_files", TextTuple(), nullable=False, server_default="[]"),
    Column("app_url", String(500)),
    Column(
        "auto_stop_timeout",
        Integer(),
        CheckConstraint("auto_stop_timeout BETWEEN 1 AND 43200", name="auto_stop_timeout"),
        nullable=False,
        server_default=text("60"),
    ),
    Column(
        "status",
        String(50),
        CheckConstraint("status IN ('stopped', 'starting', 'running', 'stopping')", name="status"),
        nullable=False,
        server_default="stopped",
    ),
    _time("started_at"),
    Column("domain", String(255), nullable=False, server_default=""),
    Column("health", String(50), nullable=False, server_default="unknown"),
    _time("observed_at"),
    Column("last_error", Text()),
    # The reason for the health value.
    Column("health_detail", Text()),
    Column("last_result", String(50)),
    # The last observed Compose project: finds its containers even if the Compose file is gone.
    Column("project_name", String(255)),
    Column("project_directory", Text()),
    # The run: an app with a running container has one. stop_at is its deadline, compared and set with run_id.
    Column("run_id", Uuid()),
    Column("run_timeout", Integer()),
    _time("stop_at"),
    # Start of the timeout in database time; started_at may come from a host's clock.
    _time("run_began_at"),
    # Increases with each deadline change, so that a host can tell which of two is newer.
    Column("deadline_number", BigInteger(), nullable=False, server_default=text("0")),
    _time("warn_at"),
    Column("overdue", Boolean(), nullable=False, server_default=text("false")),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    Index("ix_apps_stop_at", "stop_at"),
    Index("ix_apps_warn_at", "warn_at"),
)

audit_logs = Table(
    "audit_logs",
    metadata,
    _id(),
    Column("user_id", ForeignKey("users.id", ondelete="SET NULL"), index=True),
    Column("username", String(255)),
    Column("action", String(255), nullable=False),
    Column("resource_type", String(100), nullable=False),
    Column("resource_id", Uuid()),
    Column("resource_name", String(255)),
    Column("message", Text(), nullable=False),
    Column("details", JsonObject),
    Column("ip_address", String(45)),
    Column("user_agent", String(500)),
    _time("created_at", nullable=False),
    Index("ix_audit_logs_created_at", "created_at"),
)

operations = Table(
    "operations",
    metadata,
    _id(),
    Column(
        "kind",
        String(20),
        CheckConstraint("kind IN ('up', 'down', 'restart', 'agent_install', 'agent_uninstall')", name="kind"),
        nullable=False,
    ),
    Column("app_id", ForeignKey("apps.id", ondelete="SET NULL"), index=True),
    Column("server_id", ForeignKey("servers.id", ondelete="SET NULL"), index=True),
    Column(
        "state",
        String(20),
        CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'interrupted')", name="state"
        ),
        nullable=False,
    ),
    # The actor: the user's ID while the user exists, and the name permanently; "auto-stop" is an actor too.
    Column("actor_id", ForeignKey("users.id", ondelete="SET NULL")),
    Column("actor", String(255), nullable=False),
    Column("auto_stop", Boolean(), nullable=False, server_default=text("false")),
    Column("transport", String(20)),
    Column("run_id", Uuid()),
    Column("run_timeout", Integer()),
    Column("exit_code", Integer()),
    Column("error_code", String(100)),
    Column("error", Text()),
    _time("created_at", nullable=False),
    _time("deadline_at", nullable=False),
    _time("started_at"),
    _time("finished_at"),
    Index("ix_operations_created_at", "created_at"),
    # One operation in flight per app, enforced by the database, not by a lock in a process.
    _unique_where("uq_operations_in_flight", "app_id", _IN_FLIGHT),
    # Parameters of an agent installation or removal, as JSON, for a controller that takes it over.
    Column("request", Text()),
    # The controller that drives it.
    Column("driver", Uuid()),
    _unique_where("uq_operations_agent_in_flight", "server_id", f"{_IN_FLIGHT} AND {_ON_AN_AGENT}"),
)

# Output of operations in pieces: `start` and `stop` are byte offsets, equal to those on the host.
operation_output = Table(
    "operation_output",
    metadata,
    Column("operation_id", ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True),
    Column("start", BigInteger(), primary_key=True, autoincrement=False),
    Column("stop", BigInteger(), nullable=False),
    Column("data", LargeBinary(), nullable=False),
)

# The last log lines of the containers that an app's last stop removed, as JSON.
last_logs = Table(
    "last_logs",
    metadata,
    Column("app_id", ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True),
    Column("service", String(255), primary_key=True),
    _time("stopped_at", nullable=False),
    Column("lines", Text(), nullable=False),
    Index("ix_last_logs_stopped_at", "stopped_at"),
)

# Changed apps, servers and operations in commit order, across all controllers.
changes = Table(
    "changes",
    metadata,
    Column("number", BigInteger(), primary_key=True, autoincrement=False),
    Column("kind", String(20), nullable=False),
    Column("resource_id", Uuid()),
)

# Running controllers by ID; one without a recent heartbeat loses its operations.
controllers = Table("controllers", metadata, Column("id", Uuid(), primary_key=True), _time("seen_at", nullable=False))

# A login token is valid while its session exists; a logout, a new password or a new role deletes it.
sessions = Table(
    "sessions",
    metadata,
    Column("jti", Uuid(), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    _time("expires_at", nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    _id(),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(255), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scopes", String(100), nullable=False),
    _time("expires_at"),
    _time("last_used_at"),
    _time("created_at", nullable=False),
)

# Failed logins for rate limits; the keys are digests, as users sometimes type a password as the name.
login_failures = Table(
    "login_failures",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("failures", Integer(), nullable=False),
    _time("last_at", nullable=False),
    _time("trusted_until"),
    Index("ix_login_failures_last_at", "last_at"),
)

# Responses to requests with an Idempotency-Key, stored in the transaction that created the resource.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("reply", Text(), nullable=False),
    _time("created_at", nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

authorities = Table(
    "authorities",
    metadata,
    Column("id", Integer(), primary_key=True, autoincrement=False),
    Column("certificate", Text(), nullable=False),
    Column("encrypted_key", EncryptedText(), nullable=False),
    _time("created_at", nullable=False),
)

enrollment_tokens = Table(
    "enrollment_tokens",
    metadata,
    _id(),
    Column("server_id", ForeignKey("servers.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("encrypted_secret", EncryptedText(), nullable=False),
    _time("expires_at", nullable=False),
    _time("used_at"),
    _time("created_at", nullable=False),
)

enrollments = Table(
    "enrollments",
    metadata,
    _id(),
    Column("server_id", ForeignKey("servers.id", ondelete="CASCADE"), nullable=False, index=True),
    # Null for an enrollment over SSH.
    Column("token_id", ForeignKey("enrollment_tokens.id", ondelete="CASCADE"), unique=True),
    Column("agent_name", String(255), nullable=False, unique=True),
    Column("public_key", String(64), nullable=False),
    Column("certificate", Text(), nullable=False),
    _time("created_at", nullable=False),
)
