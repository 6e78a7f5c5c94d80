"""Runs: what an app's columns become when something began, ended or was seen. Pure.

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
    """What an app came to that stopped without a stop and without a failure."""

    COMPLETED = "completed"
    NOTHING_STARTED = "nothing_started"


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all runs: how long one may last, extensions included, and how long before its end people are told.

    `most` is MAX_RUN_MINUTES, `warnings` STOPPING_SOON_MINUTES.
    """

    most: timedelta = timedelta(minutes=43_200)
    warnings: tuple[timedelta, ...] = (timedelta(minutes=10), timedelta(minutes=2))

    def deadline(self, app: App, stop_at: datetime, now: datetime) -> Values:
        """Return the columns of a deadline that is set now: whoever was warned of another is warned of this one."""
        values = {"stop_at": stop_at, "warn_at": self.next_warning(stop_at, now), "overdue": False}
        return values | {"deadline_number": next_deadline_number(app, now)}

    def next_warning(self, stop_at: datetime, now: datetime) -> datetime | None:
        """Return the next moment at which people are told that the end is near; None where there is none left."""
        return min((stop_at - before for before in self.warnings if stop_at - before > now), default=None)

    def new_run(self, app: App, run_id: UUID, timeout: int, now: datetime) -> Values:
        """Return the columns of a run that begins now; `timeout` is minutes, cut where it is more than a run may have.

        An app's own timeout may be older than the limit.
        """
        timeout = min(timeout, int(self.most / timedelta(minutes=1)))
        run = {"run_id": run_id, "run_timeout": timeout, "started_at": now, "run_began_at": now}
        return run | self.deadline(app, now + timedelta(minutes=timeout), now)


def shown_timeout(app: App) -> int:
    """Return the minutes that an app shows as its timeout: its run's own length while it runs, else its default.

    Dashboards count `startedAt` plus this by themselves, and stop the app at zero: it has to lead to `stopAt`.
    """
    if app.started_at is None or app.stop_at is None:
        return app.auto_stop_timeout
    return max(ceil((app.stop_at - app.started_at) / timedelta(minutes=1)), 1)


def default_minutes(app: App, kind: OperationKind, now: datetime) -> int:
    """Return the length of a run that is given none: the app's default, but no end before that of the run it follows.

    A start by a page that is behind must not shorten what somebody else was given. A restart begins its time anew.
    """
    if kind is not OperationKind.UP or app.started_at is None or app.stop_at is None:
        return app.auto_stop_timeout
    return max(app.auto_stop_timeout, ceil((app.stop_at - now) / timedelta(minutes=1)))


@dataclass(frozen=True, slots=True)
class NewTimeout:
    """What a change of an app's timeouts means: its `default` from now on, and the minutes by which its run moves."""

    default: int
    shift: int

    @classmethod
    def of(cls, app: App, shown: int | None, default: int | None) -> "NewTimeout":
        """Read a change: `shown` is a new `autoStopTimeout`, `default` a new `defaultTimeout`, None for none.

        The value that is shown moves the run, and repeated it changes nothing. A new default moves only a run that
        took the old one.
        """
        before = shown_timeout(app)
        if shown is not None and shown != before:
            return cls(shown if default is None else default, shown - before)
        if default is None:
            return cls(app.auto_stop_timeout, 0)
        took_default = app.run_timeout == app.auto_stop_timeout
        return cls(default, default - app.auto_stop_timeout if took_default else 0)


def next_deadline_number(app: App, now: datetime) -> int:
    """Return the number of an app's next deadline: the time in milliseconds, so it is higher after a restore too."""
    return max(app.deadline_number + 1, to_millis(now))


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

    def columns(self, now: datetime) -> Values:
        """Return the columns of an operation that ends so."""
        return {
            "state": self.state,
            "exit_code": self.exit_code,
            "error_code": self.error_code,
            "error": self.error,
            "finished_at": now,
        }


def host_app(app: App) -> HostApp:
    """Return an app as its host is told of it."""
    project = None
    if app.project_name is not None and app.project_directory is not None:
        project = Project(app.project_name, app.project_directory)
    return HostApp(app.cd_path, project, app.compose_files)


def no_run(app: App, now: datetime) -> Values:
    """Return the columns of an app whose run, if it had one, is over."""
    return NO_RUN if app.run_id is None else NO_RUN | {"deadline_number": next_deadline_number(app, now)}


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

    def is_resumed_by(self, observation: AppObservation, now: datetime) -> bool:
        """Tell whether its containers were restarted by hand, or by the Engine: within its time that wins them none."""
        same = any(c.alive and c.id in self.containers for c in observation.containers)
        return same and self.values["stop_at"] > now


def found_run(app: App, observation: AppObservation, now: datetime, rules: Rules) -> Values:
    """Return the columns of a run that was found: begun by hand, before the app was made, or while nobody looked.

    It shows its real start, as far as the host's clock can be believed; its time counts from now, so that nobody is
    surprised.
    """
    starts = [c.started_at for c in observation.containers if c.alive and c.started_at is not None]
    return rules.new_run(app, uuid4(), app.auto_stop_timeout, now) | {"started_at": min([*starts, now])}


def begin_start(app: App, operation: Operation, now: datetime) -> Values:
    """Return what a start changes when it is recorded: a provisional run, unless there is a run already."""
    assert operation.run_timeout is not None
    # A new number in any case: the agent is told of the new run before it starts it.
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
    """Return what the end of an operation makes of the app: always what was observed, never what was meant."""
    error = None if outcome.succeeded else outcome.error
    values: Values = {"last_error": error, "last_result": None, "updated_at": now}
    if operation.kind == OperationKind.DOWN:
        return values | _after_stop(app, outcome, now, rules)
    # Where the old run is kept its agent has to unlearn the new one.
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
        # Nobody could look. A success ran; of a failure the run is kept, so that what it may have left is stopped.
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
        # A stop that exited 0 has looked for itself: nothing of the app was left.
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
    """Return what changes by an observation; empty where nothing does.

    While an operation is in flight its end decides about status and run; only the health is taken. `ended` is the run
    that ended last without an operation; `problem` is what is wrong with the app's directory, shown as health detail.
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
    """Return why an app that nobody stopped runs no more, as a part of a sentence."""
    regular = [c for c in containers if not c.one_off]
    return why_ended(regular) if regular else "its containers were removed"


def why_ended(containers: Sequence[ContainerState]) -> str:
    """Return how containers ended, as a part of a sentence."""
    return clean_sentence(", ".join(f"{c.service or c.name} {_ended(c)}" for c in containers))


def _ended(container: ContainerState) -> str:
    if container.state == "exited":
        return f"exited with code {container.exit_code}"
    return "was never started" if container.state == "created" else f"is {container.state}"


def _all_done(containers: Sequence[ContainerState]) -> bool:
    return bool(containers) and all(c.done for c in containers if not c.one_off)


def _result(observation: AppObservation) -> str | None:
    """Return what a start that succeeded came to, where it left nothing running."""
    regular = [c for c in observation.containers if not c.one_off and not is_orphan(c, observation.replicas)]
    if not regular:
        return LastResult.NOTHING_STARTED.value
    return LastResult.COMPLETED.value if _all_done(regular) else None


def _with_run(
    app: App, observation: AppObservation, now: datetime, rules: Rules, ended: EndedRun | None = None
) -> Values:
    """Hold the invariant: containers found running begin a run; where none is left, the run is over."""
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
        health, reason = Health.UNKNOWN, observation.problem  # nobody can say what it should be made of
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
