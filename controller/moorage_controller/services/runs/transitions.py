"""Run state transitions: new column values of an app when an operation begins or ends, or its state is observed. Pure.

The invariant: an app with a running container has a run, and so a deadline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Any
from uuid import UUID, uuid4

from moorage_common.clock import to_millis
from moorage_common.docker.app_identity import DIRECTORY_HANGS
from moorage_common.docker.states import (
    AppStatus,
    ContainerState,
    Health,
    OperationKind,
    Project,
    is_orphan,
    judge,
    observed_status,
)
from moorage_common.untrusted import clean_sentence

from moorage_controller.hosts.transport import AppObservation, HostApp
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation

Values = dict[str, Any]
NO_RUN: Values = {
    "run_id": None,
    "run_timeout": None,
    "started_at": None,
    "run_began_at": None,
    "stop_at": None,
    "warn_at": None,
    "overdue": False,
}
NOT_JUDGED: Values = {"health": Health.UNKNOWN.value, "health_detail": None}


class LastResult(StrEnum):
    """Result of an app that stopped without a stop operation and without a failure."""

    COMPLETED = "completed"
    NOTHING_STARTED = "nothing_started"


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of all runs: the maximum length, extensions included, and the warning times before a run's end.

    `most` is MAX_RUN_MINUTES; `warnings` is STOPPING_SOON_MINUTES.
    """

    most: timedelta = timedelta(minutes=43_200)
    warnings: tuple[timedelta, ...] = (timedelta(minutes=10), timedelta(minutes=2))

    def deadline(self, app: App, stop_at: datetime, now: datetime) -> Values:
        """Return the columns of a deadline that is set now; the warnings start again for the new deadline."""
        values = {"stop_at": stop_at, "warn_at": self.next_warning(stop_at, now), "overdue": False}
        return values | {"deadline_number": next_deadline_number(app, now)}

    def next_warning(self, stop_at: datetime, now: datetime) -> datetime | None:
        """Return the time of the next warning before `stop_at`, or None if no warning is left."""
        return min((stop_at - before for before in self.warnings if stop_at - before > now), default=None)

    def new_run(self, app: App, run_id: UUID, timeout: int, now: datetime) -> Values:
        """Return the columns of a run that begins now; `timeout` is in minutes, capped at the maximum run length.

        An app's stored timeout may predate the limit and exceed it.
        """
        timeout = min(timeout, int(self.most / timedelta(minutes=1)))
        run = {"run_id": run_id, "run_timeout": timeout, "started_at": now, "run_began_at": now}
        return run | self.deadline(app, now + timedelta(minutes=timeout), now)


def shown_timeout(app: App) -> int:
    """Return the timeout shown for an app, in minutes: the length of its run while it runs, else its default.

    Dashboards compute the end as `startedAt` plus this value and stop the app then, so it has to match `stopAt`.
    """
    if app.started_at is None or app.stop_at is None:
        return app.auto_stop_timeout
    return max(ceil((app.stop_at - app.started_at) / timedelta(minutes=1)), 1)


def default_minutes(app: App, kind: OperationKind, now: datetime) -> int:
    """Return the default run length in minutes: the app's default, but a start never ends before the current run does.

    A start from an outdated page must not shorten the time another user was given. A restart resets the time.
    """
    if kind is not OperationKind.UP or app.started_at is None or app.stop_at is None:
        return app.auto_stop_timeout
    return max(app.auto_stop_timeout, ceil((app.stop_at - now) / timedelta(minutes=1)))


@dataclass(frozen=True, slots=True)
class NewTimeout:
    """Effect of a timeout change: the new `default`, and the `shift` of the current run's end, both in minutes."""

    default: int
    shift: int

    @classmethod
    def of(cls, app: App, shown: int | None, default: int | None) -> "NewTimeout":
        """Interpret a change: `shown` is a new `autoStopTimeout`, `default` a new `defaultTimeout`; None: not given.

        A new `shown` value moves the run; sending the current value again changes nothing. A new default moves only
        a run that uses the old default.
        """
        before = shown_timeout(app)
        if shown is not None and shown != before:
            return cls(shown if default is None else default, shown - before)
        if default is None:
            return cls(app.auto_stop_timeout, 0)
        took_default = app.run_timeout == app.auto_stop_timeout
        return cls(default, default - app.auto_stop_timeout if took_default else 0)


def next_deadline_number(app: App, now: datetime) -> int:
    """Return an app's next deadline number. It is at least the time in ms, so it also increases after a restore."""
    return max(app.deadline_number + 1, to_millis(now))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Recorded outcome of an operation.

    `ran` is False only if it certainly never ran on the host. `observed` is None if the app could not be inspected
    afterwards.
    """

    state: str
    ran: bool = True
    exit_code: int | None = None
    error_code: str | None = None
    error: str | None = None
    observed: AppObservation | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the operation succeeded."""
        return self.state == "succeeded"

    def columns(self, now: datetime) -> Values:
        """Return the columns of an operation with this outcome."""
        return {
            "state": self.state,
            "exit_code": self.exit_code,
            "error_code": self.error_code,
            "error": self.error,
            "finished_at": now,
        }


def host_app(app: App) -> HostApp:
    """Return the representation of an app that is sent to its host."""
    project = None
    if app.project_name is not None and app.project_directory is not None:
        project = Project(app.project_name, app.project_directory)
    return HostApp(app.cd_path, project, app.compose_files)


def no_run(app: App, now: datetime) -> Values:
    """Return the columns that clear an app's run, if it has one."""
    return NO_RUN if app.run_id is None else NO_RUN | {"deadline_number": next_deadline_number(app, now)}


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run whose containers ended without an operation. It resumes if the same containers run again."""

    values: Values
    containers: frozenset[str]

    @classmethod
    def of(cls, app: App, observation: AppObservation) -> "EndedRun":
        """Return the run of an app that was just observed as stopped."""
        values = {name: getattr(app, name) for name in NO_RUN}
        return cls(values, frozenset(c.id for c in observation.containers))

    def is_resumed_by(self, observation: AppObservation, now: datetime) -> bool:
        """Return whether its containers were restarted, by hand or by the Engine, before its end, which stays."""
        same = any(c.alive and c.id in self.containers for c in observation.containers)
        return same and self.values["stop_at"] > now


def found_run(app: App, observation: AppObservation, now: datetime, rules: Rules) -> Values:
    """Return the columns of a run found without an operation: started by hand, before the app existed, or unobserved.

    `started_at` is the containers' own start time, but never in the future, as the host's clock may be wrong. The
    timeout counts from now, so that the stop never comes without notice.
    """
    starts = [c.started_at for c in observation.containers if c.alive and c.started_at is not None]
    return rules.new_run(app, uuid4(), app.auto_stop_timeout, now) | {"started_at": min([*starts, now])}


def begin_start(app: App, operation: Operation, now: datetime) -> Values:
    """Return the changes for a start that is being recorded: a provisional run, unless the app has a run already."""
    assert operation.run_timeout is not None
    # Always a new number: the agent receives the deadline of the new run before it starts the run.
    number = next_deadline_number(app, now)
    values: Values = {"status": AppStatus.STARTING.value, "deadline_number": number, "last_result": None}
    if app.run_id is None:
        values |= {
            "run_id": operation.run_id,
            "run_timeout": operation.run_timeout,
            "stop_at": operation.deadline_at + timedelta(minutes=operation.run_timeout),
        }
    return values


def settle(app: App, operation: Operation, outcome: Outcome, now: datetime, rules: Rules) -> Values:
    """Return the app's columns after an operation ended: the observed state, never the intended one."""
    error = None if outcome.succeeded else outcome.error
    values: Values = {"last_error": error, "last_result": None, "updated_at": now}
    if operation.kind == OperationKind.DOWN:
        return values | _after_stop(app, outcome, now, rules)
    # If the old run is kept, the new number makes the agent drop the deadline of the new one.
    return (
        values | {"deadline_number": next_deadline_number(app, now)} | _after_start(app, operation, outcome, now, rules)
    )


def _after_start(app: App, operation: Operation, outcome: Outcome, now: datetime, rules: Rules) -> Values:
    assert operation.run_id is not None
    assert operation.run_timeout is not None
    provisional = app.run_id is None or app.run_id == operation.run_id
    if not outcome.ran and outcome.observed is None:
        return _as_before(app, now, keep_run=not provisional)
    run = rules.new_run(app, operation.run_id, operation.run_timeout, now)
    if outcome.observed is None:
        # No observation. A success ran; after a failure the run is kept, so that leftover containers are stopped.
        status = AppStatus.RUNNING if outcome.succeeded or not provisional else AppStatus.STOPPED
        kept = run if outcome.succeeded or provisional else {}
        return {"status": status.value} | NOT_JUDGED | kept
    seen = _seen(outcome.observed, now)
    if seen["status"] == AppStatus.STOPPED:
        result = _result(outcome.observed) if outcome.succeeded else None
        return seen | no_run(app, now) | {"last_result": result}
    return seen | (run if outcome.succeeded or provisional else {})


def _after_stop(app: App, outcome: Outcome, now: datetime, rules: Rules) -> Values:
    if outcome.observed is None:
        # A stop with exit code 0 has verified by itself that no container of the app is left.
        if outcome.succeeded:
            return {"status": AppStatus.STOPPED.value, "observed_at": now} | NOT_JUDGED | no_run(app, now)
        return _as_before(app, now, keep_run=True)
    return _with_run(app, outcome.observed, now, rules)


def observe(
    app: App,
    observation: AppObservation,
    now: datetime,
    rules: Rules,
    *,
    in_flight: bool,
    ended: EndedRun | None = None,
    problem: str | None = None,
) -> Values:
    """Return the columns that an observation changes; empty if none.

    While an operation is in flight, only the health is updated: status and run are set when the operation ends.
    `ended` is the last run that ended without an operation. `problem` is a problem of the app's directory, shown as
    health detail.
    """
    seen = _seen(observation, now) if in_flight else _with_run(app, observation, now, rules, ended)
    if problem is not None:
        seen["health_detail"] = problem
    if in_flight:
        del seen["status"]
    elif app.status == AppStatus.RUNNING and seen["status"] == AppStatus.STOPPED:
        reason = why_stopped(observation.containers)
        done = _all_done(observation.containers)
        seen["last_error"] = None if done else f"{reason[0].upper()}{reason[1:]}."
        seen["last_result"] = LastResult.COMPLETED.value if done else None
    elif seen["status"] == AppStatus.RUNNING:
        seen["last_result"] = None
    changed = {key: value for key, value in seen.items() if key != "observed_at" and getattr(app, key) != value}
    return changed | {"observed_at": now} if changed else {}


def why_stopped(containers: Sequence[ContainerState]) -> str:
    """Return why an app stopped without a stop operation, as a clause."""
    regular = [c for c in containers if not c.one_off]
    return why_ended(regular) if regular else "its containers were removed"


def why_ended(containers: Sequence[ContainerState]) -> str:
    """Return how containers ended, as a clause."""
    return clean_sentence(", ".join(f"{c.service or c.name} {_ended(c)}" for c in containers))


def _ended(container: ContainerState) -> str:
    if container.state == "exited":
        return f"exited with code {container.exit_code}"
    return "was never started" if container.state == "created" else f"is {container.state}"


def _all_done(containers: Sequence[ContainerState]) -> bool:
    return bool(containers) and all(c.done for c in containers if not c.one_off)


def _result(observation: AppObservation) -> str | None:
    """Return the result of a successful start that left nothing running."""
    regular = [c for c in observation.containers if not c.one_off and not is_orphan(c, observation.replicas)]
    if not regular:
        return LastResult.NOTHING_STARTED.value
    return LastResult.COMPLETED.value if _all_done(regular) else None


def _with_run(
    app: App, observation: AppObservation, now: datetime, rules: Rules, ended: EndedRun | None = None
) -> Values:
    """Keep the invariant: running containers without a run begin one; without running containers the run is over."""
    seen = _seen(observation, now)
    if seen["status"] == AppStatus.STOPPED:
        return seen | no_run(app, now)
    if app.run_id is not None:
        return seen
    if ended is not None and ended.is_resumed_by(observation, now):
        return seen | ended.values | rules.deadline(app, ended.values["stop_at"], now)
    return seen | found_run(app, observation, now, rules)


def _as_before(app: App, now: datetime, *, keep_run: bool) -> Values:
    running = app.run_id is not None and keep_run
    status = AppStatus.RUNNING if running else AppStatus.STOPPED
    return {"status": status.value} | ({} if keep_run else no_run(app, now))


def _seen(observation: AppObservation, now: datetime) -> Values:
    containers: Sequence[ContainerState] = observation.containers
    judged = judge(containers, observation.replicas)
    health, reason = judged.health, judged.reason
    if observation.problem_code == DIRECTORY_HANGS:
        health, reason = Health.UNKNOWN, observation.problem  # the expected services are unknown
    values: Values = {
        "status": observed_status(containers).value,
        "health": health.value,
        "health_detail": None if not reason else clean_sentence(reason),
        "observed_at": now,
    }
    project: Project | None = observation.project
    if project is not None:
        values |= {"project_name": project.name, "project_directory": project.directory}
    return values
