"""Bodies and replies about apps: their records, starts, stops and extensions, and their containers."""

import re
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import Field, model_validator

from moorage_controller.api.schemas import MAX_MILLIS, CdPath, ComposeFiles, Domain, Minutes, Name, Number, Schema, Url

_DURATION = re.compile(r"minute|hour|second|day|duration|timeout|until|ttl|stop_?(at|after|in)|expires")
"""Field names that indicate a time."""


class AppIn(Schema):
    """POST /api/apps."""

    name: Name
    project_id: UUID
    server_id: UUID
    cd_path: CdPath
    compose_files: ComposeFiles = ()
    """The app's own compose files, in Compose's order, relative to `cdPath`; empty: Compose finds them by default."""
    app_url: Url | None = None
    domain: Domain = ""
    auto_stop_timeout: Minutes = 60
    default_timeout: Minutes | None = None
    """Another name of `autoStopTimeout`; it takes precedence if both are given."""


class AppChanges(Schema):
    """PUT /api/apps/{id}: absent fields stay unchanged.

    While the app runs, an `autoStopTimeout` other than the shown one moves the end of this run by the difference, and
    becomes the default of later runs; the shown value changes nothing. `defaultTimeout` is only the default: it moves
    a run that uses the old default, but not one with a timeout of its own.
    """

    name: Name | None = None
    project_id: UUID | None = None
    server_id: UUID | None = None
    cd_path: CdPath | None = None
    compose_files: ComposeFiles | None = None
    app_url: Url | None = None
    domain: Domain | None = None
    auto_stop_timeout: Minutes | None = None
    default_timeout: Minutes | None = None


class AppOut(Schema):
    """An app.

    While the app runs, `autoStopTimeout` is the length of this run: the minutes from `startedAt` to `stopAt`, rounded
    up. `defaultTimeout` is the length of a run without a timeout of its own.
    """

    id: UUID
    name: str
    project_id: UUID
    server_id: UUID
    cd_path: str
    compose_files: list[str]
    app_url: str | None
    auto_stop_timeout: int
    default_timeout: int
    status: str
    started_at: int | None
    domain: str
    stop_at: int | None
    health: str
    health_detail: str | None
    """The reason for a health of degraded, unhealthy or starting."""
    observed_at: int | None
    last_error: str | None
    last_result: str | None
    """Result of an app that stopped by itself: `completed` (all containers exited with 0), or `nothing_started`."""
    operation_id: UUID | None
    overdue: bool
    """The run's deadline has passed, but the app is not stopped yet."""


class ContainerOut(Schema):
    """A container of an app, with the Engine's states.

    `since`: the time of its start, or of its end if it doesn't run. `restarts`: the number of starts by its restart
    policy. `orphan`: its service is no longer in the app's files; it doesn't count for the health, and a restart
    removes it.
    """

    id: str
    name: str
    service: str
    state: str
    health: str | None
    exit_code: int | None
    image: str
    ports: list[str]
    one_off: bool
    orphan: bool
    restarts: int
    since: int | None


class ProjectFoundOut(Schema):
    """A Compose project on a host without an app, with the fields for POST /api/apps.

    `configFiles` and `environmentFile` are those its containers were started with, according to their labels.
    `composeFiles` are the same files as an app's own; empty if Compose finds them by default, or if no app can have
    them.
    """

    name: str
    cd_path: CdPath
    config_files: list[str]
    environment_file: str | None
    compose_files: list[str]
    status: str
    services: list[str]


class Timed(Schema):
    """Base of bodies with times: an unknown field that looks like a time is refused instead of ignored."""

    @model_validator(mode="before")
    @classmethod
    def _no_lost_duration(cls, body: object) -> object:
        known = {name for key, field in cls.model_fields.items() for name in (key, field.alias)}
        for name in body if isinstance(body, dict) else ():
            if name not in known and _DURATION.search(str(name).lower()):
                raise ValueError(f"{str(name)[:50]!a} isn't known here: give {cls.duration_hint}.")
        return body

    duration_hint: ClassVar[str]


class StartIn(Timed):
    """POST /api/apps/{id}/start and /restart, for this run only; the body may be omitted.

    `timeout`, `timeout_minutes` and `minutes` are aliases.
    """

    duration_hint = "minutes, for this run"

    timeout: Minutes | None = None
    timeout_minutes: Annotated[Minutes | None, Field(alias="timeout_minutes")] = None
    minutes: Minutes | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if len({self.timeout, self.timeout_minutes, self.minutes} - {None}) > 1:
            raise ValueError("timeout, timeout_minutes and minutes differ: give one of them.")
        return self

    @property
    def length(self) -> int | None:
        """The requested minutes, None for the app's default."""
        return self.timeout or self.timeout_minutes or self.minutes


class StopIn(Timed):
    """POST /api/apps/{id}/stop; the body may be omitted. `cancelStart` first cancels a start in progress."""

    duration_hint = "nothing, since a stop is done at once"

    cancel_start: bool = False


class ExtendIn(Timed):
    """POST /api/apps/{id}/extend: by minutes, or until a time (epoch milliseconds), earlier or later."""

    duration_hint = "minutes, or until (epoch milliseconds)"

    minutes: Minutes | None = None
    until: Annotated[int, Number, Field(ge=0, le=MAX_MILLIS)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.minutes is None) == (self.until is None):
            raise ValueError("Give either minutes or until.")
        return self


class StartedOut(Schema):
    """The reply to a successful start; dashboards require the names `timer_ends_at` and `app_url`."""

    success: bool
    app_id: UUID
    status: str
    started_at: int | None
    message: str
    stop_at: int | None
    timer_ends_at: Annotated[int | None, Field(alias="timer_ends_at")]
    app_url: Annotated[str | None, Field(alias="app_url")]
    operation_id: UUID
    output: str


class StoppedOut(Schema):
    """The reply to a successful stop."""

    success: bool
    app_id: UUID
    status: str
    message: str
    operation_id: UUID
    output: str
