"""Runs: what an app's columns become when something began, ended or was seen. Pure.

The invariant: an app with a running container has a run, and so a deadline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from moorage_common.states import (
    AppStatus,
    ContainerState,
    Health,
    OperationKind,
    Project,
    observed_health,
    observed_status,
)

from moorage_controller.hosts.transport import AppObservation, HostApp
from moorage_controller.store.apps import App
from moorage_controller.store.operations import Operation

Values = dict[str, Any]
NO_RUN: Values = {"run_id": None, "run_timeout": None, "started_at": None, "stop_at": None}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended, for the record.

    `ran` is False where it certainly never ran on the host. `observed` is None where nobody could look afterwards.
    """

    state: str
    ran: bool = True
    exit_code: int | None = None
    error_code: str | None = None
    error: str | None = None
    observed: AppObservation | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the host did what was asked."""
        return self.state == "succeeded"


def host_app(app: App) -> HostApp:
    """Return an app as its host is told of it."""
    if app.project_name is None or app.project_directory is None:
        return HostApp(app.cd_path)
    return HostApp(app.cd_path, Project(app.project_name, app.project_directory))


def new_run(run_id: UUID, timeout: int, now: datetime) -> Values:
    """Return the columns of a run that begins now; `timeout` is minutes."""
    return {
        "run_id": run_id,
        "run_timeout": timeout,
        "started_at": now,
        "stop_at": now + timedelta(minutes=timeout),
    }


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run whose containers ended without an operation: where these very containers run again, it goes on."""

    values: Values
    containers: frozenset[str]

    @classmethod
    def of(cls, app: App, observation: AppObservation) -> "EndedRun":
        """Return the run of an app that was just seen stopped."""
        values = {name: getattr(app, name) for name in NO_RUN}
        return cls(values, frozenset(c.id for c in observation.containers))

    def goes_on(self, observation: AppObservation, now: datetime) -> bool:
        """Tell whether its containers were restarted by hand, or by the Engine: within its time that wins them none."""
        same = any(c.alive and c.id in self.containers for c in observation.containers)
        return same and self.values["stop_at"] > now


def found_run(app: App, observation: AppObservation, now: datetime) -> Values:
    """Return the columns of a run that was found: begun by hand, before the app was made, or while nobody looked.

    It shows its real start, as far as the host's clock can be believed; its time counts from now, so that nobody is
    surprised.
    """
    starts = [c.started_at for c in observation.containers if c.alive and c.started_at is not None]
    return new_run(uuid4(), app.auto_stop_timeout, now) | {"started_at": min([*starts, now])}


def begin_start(app: App, operation: Operation) -> Values:
    """Return what a start changes when it is recorded: a provisional run, unless there is a run already."""
    assert operation.run_timeout is not None
    values: Values = {"status": AppStatus.STARTING.value}
    if app.run_id is None:
        values |= {
            "run_id": operation.run_id,
            "run_timeout": operation.run_timeout,
            "stop_at": operation.deadline_at + timedelta(minutes=operation.run_timeout),
        }
    return values


def settle(app: App, operation: Operation, outcome: Outcome, now: datetime) -> Values:
    """Return what the end of an operation makes of the app: always what was observed, never what was meant."""
    values: Values = {"last_error": None if outcome.succeeded else outcome.error, "updated_at": now}
    if operation.kind == OperationKind.DOWN:
        return values | _after_stop(app, outcome, now)
    return values | _after_start(app, operation, outcome, now)


def _after_start(app: App, operation: Operation, outcome: Outcome, now: datetime) -> Values:
    assert operation.run_id is not None
    assert operation.run_timeout is not None
    provisional = app.run_id is None or app.run_id == operation.run_id
    if not outcome.ran and outcome.observed is None:
        return _as_before(app, keep_run=not provisional)
    run = new_run(operation.run_id, operation.run_timeout, now)
    if outcome.observed is None:
        # Nobody could look. A success ran; of a failure the run is kept, so that what it may have left is stopped.
        status = AppStatus.RUNNING if outcome.succeeded or not provisional else AppStatus.STOPPED
        kept = run if outcome.succeeded or provisional else {}
        return {"status": status.value, "health": Health.UNKNOWN.value} | kept
    seen = _seen(outcome.observed, now)
    if seen["status"] == AppStatus.STOPPED:
        return seen | NO_RUN
    return seen | (run if outcome.succeeded or provisional else {})


def _after_stop(app: App, outcome: Outcome, now: datetime) -> Values:
    if outcome.observed is None:
        # A stop that exited 0 has looked for itself: nothing of the app was left.
        if outcome.succeeded:
            return {"status": AppStatus.STOPPED.value, "health": Health.UNKNOWN.value, "observed_at": now} | NO_RUN
        return _as_before(app, keep_run=True)
    return _with_run(app, outcome.observed, now)


def observe(
    app: App, observation: AppObservation, now: datetime, *, in_flight: bool, ended: EndedRun | None = None
) -> Values:
    """Return what changes by an observation; empty where nothing does.

    While an operation is in flight its end decides about status and run; only the health is taken. `ended` is the run
    that ended last without an operation.
    """
    seen = _seen(observation, now) if in_flight else _with_run(app, observation, now, ended)
    if in_flight:
        del seen["status"]
    elif app.status == AppStatus.RUNNING and seen["status"] == AppStatus.STOPPED:
        reason = why_stopped(observation.containers)
        seen["last_error"] = None if _all_done(observation.containers) else f"{reason[0].upper()}{reason[1:]}."
    changed = {key: value for key, value in seen.items() if key != "observed_at" and getattr(app, key) != value}
    return changed | {"observed_at": now} if changed else {}


def why_stopped(containers: Sequence[ContainerState]) -> str:
    """Return why an app that nobody stopped runs no more, as a part of a sentence."""
    ended = [f"{c.service or c.name} {_ended(c)}" for c in containers if not c.one_off]
    return ", ".join(ended) if ended else "its containers were removed"


def _ended(container: ContainerState) -> str:
    if container.state == "exited":
        return f"exited with code {container.exit_code}"
    return "was never started" if container.state == "created" else f"is {container.state}"


def _all_done(containers: Sequence[ContainerState]) -> bool:
    return bool(containers) and all(c.done for c in containers if not c.one_off)


def _with_run(app: App, observation: AppObservation, now: datetime, ended: EndedRun | None = None) -> Values:
    """Hold the invariant: containers found running begin a run; where none is left, the run is over."""
    seen = _seen(observation, now)
    if seen["status"] == AppStatus.STOPPED:
        return seen | NO_RUN
    if app.run_id is not None:
        return seen
    if ended is not None and ended.goes_on(observation, now):
        return seen | ended.values
    return seen | found_run(app, observation, now)


def _as_before(app: App, *, keep_run: bool) -> Values:
    running = app.run_id is not None and keep_run
    status = AppStatus.RUNNING if running else AppStatus.STOPPED
    return {"status": status.value} | ({} if keep_run else NO_RUN)


def _seen(observation: AppObservation, now: datetime) -> Values:
    containers: Sequence[ContainerState] = observation.containers
    values: Values = {
        "status": observed_status(containers).value,
        "health": observed_health(containers, observation.replicas).value,
        "observed_at": now,
    }
    project: Project | None = observation.project
    if project is not None:
        values |= {"project_name": project.name, "project_directory": project.directory}
    return values
