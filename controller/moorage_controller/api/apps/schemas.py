"""Bodies and replies about apps: their records, starts, stops and extensions, and their containers."""

import re
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import Field, model_validator

from moorage_controller.api.schemas import MAX_MILLIS, CdPath, ComposeFiles, Domain, Minutes, Name, Number, Schema, Url

_DURATION = re.compile(r"minute|hour|second|day|duration|timeout|until|ttl|stop_?(at|after|in)|expires")
"""Names of fields by which a caller means a time."""


class AppIn(Schema):
    """POST /api/apps."""

    name: Name
    project_id: UUID
    server_id: UUID
    cd_path: CdPath
    compose_files: ComposeFiles = ()
    """The compose files that are its own, in Compose's order, relative to `cdPath`; none: Compose looks for them."""
    app_url: Url | None = None
    domain: Domain = ""
    auto_stop_timeout: Minutes = 60
    default_timeout: Minutes | None = None
    """The same setting by its own name; it counts where both are given."""


class AppChanges(Schema):
    """PUT /api/apps/{id}: what is absent stays.

    While the app runs, another `autoStopTimeout` than it shows moves the end of this run by the difference, and is the
    default of later ones; the shown value, repeated, changes nothing. `defaultTimeout` is the default alone: it moves
    only a run that took the old one, and none that was given a timeout of its own.
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

    While it runs `autoStopTimeout` is its run's own length: the minutes from `startedAt` to `stopAt`, rounded up.
    `defaultTimeout` is the length of a run that is given none.
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
    """Why its health is degraded, unhealthy or starting."""
    observed_at: int | None
    last_error: str | None
    last_result: str | None
    """Of an app that stopped by itself: `completed` (all its containers exited with 0), or `nothing_started`."""
    operation_id: UUID | None
    overdue: bool
    """It should have been stopped by now, and isn't yet."""


class ContainerOut(Schema):
    """A container of an app, in the Engine's words.

    `since`: when it was started, or ended where it doesn't run; `restarts`: how often its restart policy started it;
    `orphan`: its service is no more in the app's files, it doesn't count for the health, and a restart removes it.
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
    """A Compose project on a host that no app names: what POST /api/apps asks for.

    `configFiles` and `environmentFile` are what its containers were started with, as their labels tell. `composeFiles`
    are the same as an app says them; empty for what Compose finds by itself, and for files that no app can say.
    """

    name: str
    cd_path: CdPath
    config_files: list[str]
    environment_file: str | None
    compose_files: list[str]
    status: str
    services: list[str]


class Timed(Schema):
    """Base of bodies whose times must not be lost: an unknown field that looks like one is refused."""

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
    """POST /api/apps/{id}/start and /restart, for this run only; the body may be left out.

    `timeout`, `timeout_minutes` and `minutes` are three names of the same.
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
        """The minutes that were asked for, None for the app's own."""
        return self.timeout or self.timeout_minutes or self.minutes


class StopIn(Timed):
    """POST /api/apps/{id}/stop; the body may be left out. `cancelStart` cancels a start that is in progress first."""

    duration_hint = "nothing, since a stop is done at once"

    cancel_start: bool = False


class ExtendIn(Timed):
    """POST /api/apps/{id}/extend: so many minutes more, or until a moment (epoch milliseconds), earlier or later."""

    duration_hint = "minutes, or until (epoch milliseconds)"

    minutes: Minutes | None = None
    until: Annotated[int, Number, Field(ge=0, le=MAX_MILLIS)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.minutes is None) == (self.until is None):
            raise ValueError("Give either minutes or until.")
        return self


class StartedOut(Schema):
    """The reply to a start that succeeded; `timer_ends_at` and `app_url` are named as dashboards read them."""

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
    """The reply to a stop that succeeded."""

    success: bool
    app_id: UUID
    status: str
    message: str
    operation_id: UUID
    output: str
