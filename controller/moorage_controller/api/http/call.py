"""The argument of a handler: the parsed request, its caller, and the services."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel

from moorage_controller.api.http.query_forms import FLAGS, duration, moment
from moorage_controller.auth.rate_limit import Budget, Limit
from moorage_controller.auth.roles import Actor, Origin, Principal
from moorage_controller.auth.stream_shares import StreamShares
from moorage_controller.errors import InvalidError, NotFoundError
from moorage_controller.services.accounts.accounts import Accounts
from moorage_controller.services.accounts.api_tokens import ApiTokens
from moorage_controller.services.accounts.users import Users
from moorage_controller.services.admin.health import Health
from moorage_controller.services.admin.metrics import Metrics
from moorage_controller.services.agents.agents import Agents
from moorage_controller.services.agents.enrollment import Enrollments
from moorage_controller.services.audit.audit_log import AuditLog
from moorage_controller.services.events.feed import Feed
from moorage_controller.services.fleet.checks import Checks
from moorage_controller.services.fleet.host_keys import HostKeys
from moorage_controller.services.fleet.inspection import Inspection
from moorage_controller.services.fleet.projects import Projects
from moorage_controller.services.fleet.servers import Servers
from moorage_controller.services.idempotency import IdempotentRequest, KeyedRequest
from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.operations.output_reader import OutputReader
from moorage_controller.services.runs.apps import Apps
from moorage_controller.services.runs.extensions import Extensions

T = TypeVar("T", bound=BaseModel)
Made = TypeVar("Made")
Fingerprints = Callable[[bytes], Sequence[str]]
"""Returns keyed digests of a request: one for each encryption key, the newest first."""
_MOST_DIGITS = 12
_MOST_WORD = 100


def to_json(model: BaseModel) -> str:
    """Return a model as the JSON of a reply."""
    return model.model_dump_json(by_alias=True)


@dataclass(frozen=True, slots=True)
class Services:
    """All services, the public URL of this controller, and the request budgets."""

    users: Users
    servers: Servers
    checks: Checks
    host_keys: HostKeys
    projects: Projects
    apps: Apps
    extensions: Extensions
    operations: Operations
    outputs: OutputReader
    feed: Feed
    inspection: Inspection
    enrollments: Enrollments
    agents: Agents
    audit_log: AuditLog
    health: Health
    metrics: Metrics
    base_url: str
    accounts: Accounts
    api_tokens: ApiTokens
    rate_limits: Mapping[Limit, Budget]
    stream_shares: StreamShares
    fingerprints: Fingerprints


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request with its parsed body."""

    services: Services
    request: web.Request
    origin: Origin
    principal_or_none: Principal | None
    body_or_none: BaseModel | None
    keyed: KeyedRequest | None = None

    @property
    def principal(self) -> Principal:
        """The caller; only on routes that require a role."""
        assert self.principal_or_none is not None
        return self.principal_or_none

    @property
    def actor(self) -> Actor:
        """The caller, for the audit log."""
        return Actor(self.principal.user_id, self.principal.username, self.origin)

    def body(self, model: type[T]) -> T:
        """Return the body, which is a `model` according to the route table."""
        assert isinstance(self.body_or_none, model)
        return self.body_or_none

    def once(self, show: Callable[[Made], BaseModel]) -> IdempotentRequest[Made]:
        """Return the request for storing the reply under its Idempotency-Key, if any; `show` makes the reply."""
        return IdempotentRequest(self.keyed, lambda made: to_json(show(made)))

    def id(self) -> UUID:
        """Return the id in the path. Raises NotFoundError for a malformed one, which can't exist."""
        try:
            return UUID(self.request.match_info["id"])
        except ValueError:
            raise NotFoundError("not_found", "There is nothing of that id.") from None

    def query_id(self, name: str) -> UUID | None:
        """Return an id from the query, None if absent. Raises InvalidError for a malformed one."""
        text = self.request.query.get(name)
        if not text:
            return None
        try:
            return UUID(text)
        except ValueError:
            raise InvalidError({name: "It must be a UUID."}) from None

    @property
    def last_event_id(self) -> str:
        """The Last-Event-ID of the caller of a stream; empty for a new stream."""
        return self.request.headers.get("Last-Event-ID", "")

    def query_word(self, name: str) -> str | None:
        """Return a filter word from the query, None if absent. Raises InvalidError for an invalid one."""
        text = self.request.query.get(name)
        if text and not (text.isascii() and text.isprintable() and len(text) <= _MOST_WORD):
            raise InvalidError({name: "It must be a word of the API."})
        return text or None

    def query_flag(self, name: str) -> bool:
        """Return a flag from the query, False if absent. Raises InvalidError for an unknown word."""
        found = FLAGS.get(self.request.query.get(name, "false").lower())
        if found is None:
            raise InvalidError({name: "It must be true or false (or 1, yes, on; 0, no, off)."})
        return found

    def query_ago(self, name: str) -> timedelta | None:
        """Return a duration from the query, None if absent or if the value is no duration, such as a time."""
        return duration(self.request.query.get(name, ""))

    def query_time(self, name: str) -> datetime | None:
        """Return a time from the query, parsed by `moment`; None if absent. Raises InvalidError."""
        text = self.request.query.get(name)
        if not text:
            return None
        try:
            return moment(text)
        except (ValueError, OverflowError, OSError):
            sentence = "It must be an ISO 8601 time, or epoch seconds or milliseconds."
            raise InvalidError({name: sentence}) from None

    def query_number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a number from the query. Raises InvalidError outside its bounds."""
        text = self.request.query.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and least <= int(text) <= most):
            raise InvalidError({name: f"It must be a number from {least} to {most}."})
        return int(text)
