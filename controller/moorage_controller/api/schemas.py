"""Bodies and replies of the REST API: camelCase, epoch milliseconds, minutes. Unknown fields are ignored."""

from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from moorage_common.compose.command import is_own_file
from moorage_common.untrusted import LIMITS
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from moorage_controller.hosts import endpoint

MAX_MINUTES = 43_200
MAX_MILLIS = 253_402_300_799_000
"""The end of the year 9999, the limit of datetime and databases."""


class Schema(BaseModel):
    """Base of all bodies and replies."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


def _one_line(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):  # noqa: PLR2004 - ASCII's control characters
        raise ValueError("It must be one line of printable text.")
    return text


def _no_spaces(text: str) -> str:
    if any(character.isspace() for character in text):
        raise ValueError("It must not contain spaces.")
    return text


def _cd_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("It must be an absolute path.")
    if ".." in path.split("/"):
        raise ValueError("It must not contain '..'.")
    return path


def _compose_file(path: str) -> str:
    if not is_own_file(path):
        raise ValueError("It must be a plain relative path below the app's directory.")
    return path


def _url(url: str) -> str:
    if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc):
        raise ValueError("It must be an http:// or https:// URL.")
    return url


def _endpoint(text: str) -> str:
    endpoint.parse(text)
    return text


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("It must be a number.")  # noqa: TRY004 - what pydantic tells a caller
    return value


OneLine = AfterValidator(_one_line)
Number = BeforeValidator(_no_boolean)
"""A number, but no boolean: Python would accept true as 1."""
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255), OneLine]
Endpoint = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=255),
    OneLine,
    AfterValidator(_no_spaces),
    AfterValidator(_endpoint),
]
Description = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")]
CdPath = Annotated[str, StringConstraints(min_length=1, max_length=500), OneLine, AfterValidator(_cd_path)]
ComposeFile = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_compose_file)]
ComposeFiles = Annotated[tuple[ComposeFile, ...], Field(max_length=LIMITS.config_files)]
Url = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), OneLine, AfterValidator(_url)]
Domain = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255), OneLine]
Minutes = Annotated[int, Number, Field(ge=1, le=MAX_MINUTES)]


class LoginIn(Schema):
    """POST /api/auth/login."""

    username: str
    password: str


class UserOut(Schema):
    """A user, in the replies to login and verify."""

    id: UUID
    username: str
    role: str


class LoginOut(Schema):
    """The reply to a login."""

    user: UserOut
    token: str


class VerifyOut(Schema):
    """The reply to verify."""

    user: UserOut


class SuccessOut(Schema):
    """The action succeeded."""

    success: bool = True


class DeletedOut(SuccessOut):
    """The resource was deleted."""

    message: str


class JoinTokenOut(Schema):
    """POST /api/servers/{id}/enrollment-token."""

    token: str
    expires_at: int
    command: str


class EnrollIn(Schema):
    """POST /api/enroll: `token` is the proof of the join token, not the token itself."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    csr: Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
    endpoint: Endpoint
    version: Annotated[str, StringConstraints(min_length=1, max_length=50), OneLine]


class EnrollOut(Schema):
    """The credentials of an enrolled host; certificates are PEM."""

    certificate: str
    ca: str
    server_id: UUID
    agent_name: str


class ProjectIn(Schema):
    """POST /api/projects."""

    name: Name
    description: Description | None = None


class ProjectChanges(Schema):
    """PUT /api/projects/{id}: absent fields stay unchanged."""

    name: Name | None = None
    description: Description | None = None


class ProjectOut(Schema):
    """A project."""

    id: UUID
    name: str
    description: str | None
    created_at: int


class NothingIn(Schema):
    """An empty body; it may be omitted."""


class OperationOut(Schema):
    """An operation; `actor` is a user's name or `auto-stop`.

    While the operation is in flight, `error` is the reason why it waits for its host.
    """

    id: UUID
    kind: str
    app_id: UUID | None
    server_id: UUID | None
    state: str
    actor: str
    transport: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    exit_code: int | None
    error: str | None


class OperationShownOut(OperationOut):
    """An operation with the last 64 KiB of its output: that of Compose, or of an agent's installation.

    The output grows while the operation runs. GET /api/operations/{id}/output streams it live, from its beginning.
    """

    output: str


class EventOut(Schema):
    """The data of the event `ready`. The data of other events is the resource, that of `stopping_soon` an app."""

    resumed: bool


class AuditEntryOut(Schema):
    """An audit entry: `details` is a sentence, `data` an object with the details; times are ISO 8601."""

    id: UUID
    user_id: UUID | None
    username: str | None
    action: str
    resource_type: str
    resource_id: UUID | None
    resource_name: str | None
    details: str
    data: dict[str, object] | None
    ip_address: str | None
    user_agent: str | None
    created_at: str
    updated_at: str


class AuditPageOut(Schema):
    """A page of the audit log, the newest entry first."""

    logs: list[AuditEntryOut]
    total: int
    limit: int
    offset: int


class HealthOut(Schema):
    """GET /healthz and /readyz: `problems` has a sentence for each part that doesn't work."""

    status: str
    problems: list[str] = []
