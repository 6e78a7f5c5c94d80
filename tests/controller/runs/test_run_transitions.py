"""State transitions of runs, as pure functions: a running container always implies a run with a deadline."""

import uuid
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from factories import PATH, app_row, operation_row
from fakes import EPOCH
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.docker.app_identity import DIRECTORY_HANGS
from moorage_common.docker.states import ContainerState, OperationKind, Project
from moorage_controller.hosts.transport import AppObservation
from moorage_controller.services.runs import transitions as runs
from moorage_controller.services.runs.transitions import EndedRun, Outcome, Rules
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation

LATER = EPOCH + timedelta(minutes=7)
PROJECT = Project("shop", PATH)


def seen(*states: str) -> AppObservation:
    """Return an observation of containers in those states."""
    containers = [ContainerState(str(n), f"shop-{n}", f"s{n}", "x", state) for n, state in enumerate(states)]
    return AppObservation(PATH, PROJECT if states else None, containers)


RULES = Rules()


def an_app(**changes: object) -> App:
    return app_row(uuid.uuid4(), uuid.uuid4(), **changes)


def a_running_app() -> App:
    return an_app(status="running", **RULES.new_run(an_app(), uuid.uuid4(), 60, EPOCH))


def a_start(app: App, kind: OperationKind = OperationKind.UP) -> Operation:
    return operation_row(app, kind=kind.value, run_timeout=90)


def started(app: App, operation: Operation) -> App:
    return replace(app, **runs.begin_start(app, operation, EPOCH))


def settled(app: App, operation: Operation, outcome: Outcome, now: datetime = LATER) -> App:
    return replace(app, **runs.settle(app, operation, outcome, now, RULES))


def test_start_has_provisional_run_beyond_operation_limit() -> None:
    app = an_app()
    operation = a_start(app)
    app = started(app, operation)
    assert (app.status, app.run_id, app.started_at) == ("starting", operation.run_id, None)
    assert app.stop_at == operation.deadline_at + timedelta(minutes=90)


def test_successful_start_begins_its_run_at_its_end() -> None:
    app = an_app(last_error="of the last time")
    operation = a_start(app)
    app = settled(started(app, operation), operation, Outcome("succeeded", observed=seen("running", "running")))
    assert (app.status, app.health, app.last_error) == ("running", "healthy", None)
    assert (app.run_id, app.run_timeout, app.started_at) == (operation.run_id, 90, LATER)
    assert app.stop_at == LATER + timedelta(minutes=90)
    assert (app.project_name, app.project_directory) == ("shop", PATH)


def test_unobserved_successful_start_counts_as_running() -> None:
    app = an_app()
    operation = a_start(app)
    app = settled(started(app, operation), operation, Outcome("succeeded"))
    assert (app.status, app.health, app.run_id) == ("running", "unknown", operation.run_id)


def test_start_of_only_one_shots_leaves_no_run() -> None:
    app = an_app()
    operation = a_start(app)
    app = settled(started(app, operation), operation, Outcome("succeeded", observed=seen("exited")))
    assert (app.status, app.run_id, app.stop_at, app.started_at) == ("stopped", None, None, None)


def test_failed_start_that_left_a_container_has_a_deadline() -> None:
    app = an_app()
    operation = a_start(app)
    outcome = Outcome("failed", exit_code=1, error="no such image", observed=seen("running", "created"))
    app = settled(started(app, operation), operation, outcome)
    assert (app.status, app.health, app.last_error) == ("running", "degraded", "no such image")
    assert app.stop_at == LATER + timedelta(minutes=90)


def test_failed_start_of_running_app_keeps_old_run() -> None:
    old = a_running_app()
    operation = a_start(old, OperationKind.RESTART)
    app = settled(started(old, operation), operation, Outcome("failed", error="x", observed=seen("running")))
    assert (app.run_id, app.started_at, app.stop_at) == (old.run_id, old.started_at, old.stop_at)


def test_unobserved_failed_start_keeps_run_and_deadline() -> None:
    app = an_app()
    operation = a_start(app)
    app = settled(started(app, operation), operation, Outcome("interrupted", error="x"))
    assert (app.status, app.run_id) == ("stopped", operation.run_id)
    assert app.stop_at == LATER + timedelta(minutes=90)


@pytest.mark.parametrize("kind", [OperationKind.UP, OperationKind.RESTART])
def test_start_that_never_ran_restores_previous_state(kind: OperationKind) -> None:
    for old in (an_app(), a_running_app()):
        operation = a_start(old, kind)
        app = settled(started(old, operation), operation, Outcome("failed", ran=False, error="unreachable"))
        assert (app.status, app.run_id, app.started_at, app.stop_at) == (
            old.status,
            old.run_id,
            old.started_at,
            old.stop_at,
        )
        assert app.last_error == "unreachable"


def test_start_that_never_ran_still_applies_observation() -> None:
    app = an_app()
    operation = a_start(app)
    app = settled(started(app, operation), operation, Outcome("failed", ran=False, observed=seen("running")))
    assert app.status == "running"
    assert app.run_id is not None
    old = a_running_app()
    operation = a_start(old)
    app = settled(started(old, operation), operation, Outcome("failed", ran=False, observed=seen("exited")))
    assert (app.status, app.run_id) == ("stopped", None)


def test_stop_ends_run_only_when_no_container_is_left() -> None:
    old = a_running_app()
    stop = operation_row(old, kind="down", run_id=old.run_id)
    app = settled(old, stop, Outcome("succeeded", observed=seen()))
    assert (app.status, app.run_id, app.stop_at) == ("stopped", None, None)
    app = settled(old, stop, Outcome("succeeded", exit_code=0))
    assert (app.status, app.run_id) == ("stopped", None)
    app = settled(old, stop, Outcome("failed", exit_code=1, error="busy", observed=seen("running")))
    assert (app.status, app.run_id, app.stop_at) == ("running", old.run_id, old.stop_at)
    app = settled(old, stop, Outcome("failed", ran=False, error="unreachable"))
    assert (app.status, app.run_id, app.stop_at, app.last_error) == ("running", old.run_id, old.stop_at, "unreachable")


def test_containers_found_running_begin_a_run_of_default_length() -> None:
    app = an_app(auto_stop_timeout=45)
    app = replace(app, **runs.observe(app, seen("running"), LATER, RULES, in_flight=False))
    assert (app.status, app.started_at, app.run_timeout) == ("running", LATER, 45)
    assert app.stop_at == LATER + timedelta(minutes=45)


def test_exit_of_all_containers_ends_the_run() -> None:
    app = a_running_app()
    app = replace(app, **runs.observe(app, seen("exited", "dead"), LATER, RULES, in_flight=False))
    assert (app.status, app.run_id, app.started_at, app.stop_at) == ("stopped", None, None, None)


def test_observation_during_operation_updates_only_health() -> None:
    old = a_running_app()
    values = runs.observe(old, seen("exited"), LATER, RULES, in_flight=True)
    assert "status" not in values
    assert not values.keys() & runs.NO_RUN.keys()
    assert runs.observe(old, seen("paused"), LATER, RULES, in_flight=True)["health"] == "degraded"


def test_repeated_observation_changes_nothing() -> None:
    app = a_running_app()
    app = replace(app, **runs.observe(app, seen("running"), LATER, RULES, in_flight=False))
    assert runs.observe(app, seen("running"), LATER + timedelta(hours=1), RULES, in_flight=False) == {}


STATES = st.lists(st.sampled_from(["running", "paused", "restarting", "exited", "created", "dead"]), max_size=3)
OBSERVED = STATES.map(lambda states: seen(*states))
OUTCOMES = st.builds(
    Outcome,
    state=st.sampled_from(["succeeded", "failed", "cancelled", "interrupted"]),
    ran=st.booleans(),
    error=st.just("x"),
    observed=st.none() | OBSERVED,
)
STEPS = st.lists(
    st.tuples(st.sampled_from(list(OperationKind)), OUTCOMES) | OBSERVED | st.tuples(OBSERVED, st.booleans()),
    max_size=12,
)


@given(STEPS)
def test_running_container_always_has_a_run_with_deadline(steps: list[object]) -> None:
    app, now = an_app(), EPOCH
    for step in steps:
        now += timedelta(minutes=5)
        match step:
            case (OperationKind() as kind, Outcome() as outcome):
                operation = operation_row(app, kind=kind.value, run_id=uuid.uuid4())
                before = (
                    runs.begin_start(app, operation, EPOCH)
                    if kind is not OperationKind.DOWN
                    else {"status": "stopping"}
                )
                app = settled(replace(app, **before), operation, outcome, now)
                observed = outcome.observed
            case (AppObservation() as observed, bool() as in_flight):
                app = replace(app, **runs.observe(app, observed, now, RULES, in_flight=in_flight))
                observed = None if in_flight else observed
            case AppObservation() as observed:
                app = replace(app, **runs.observe(app, observed, now, RULES, in_flight=False))
        _check(app)
        if observed is not None:
            assert app.status == ("running" if any(c.alive for c in observed.containers) else "stopped")


def _check(app: App) -> None:
    if app.status == "running":
        assert app.run_id is not None
        assert app.started_at is not None
    if app.run_id is None:
        assert (app.run_timeout, app.stop_at, app.started_at) == (None, None, None)
    else:
        assert app.run_timeout is not None
        assert app.stop_at is not None


def test_same_containers_continue_their_run_and_new_ones_begin_one() -> None:
    app = a_running_app()
    stopped = replace(app, **runs.observe(app, seen("exited"), LATER, RULES, in_flight=False))
    assert (stopped.status, stopped.run_id) == ("stopped", None)
    ended = EndedRun.of(app, seen("exited"))
    again = replace(stopped, **runs.observe(stopped, seen("running"), LATER, RULES, in_flight=False, ended=ended))
    assert (again.run_id, again.started_at, again.stop_at) == (app.run_id, app.started_at, app.stop_at)
    next_day = EPOCH + timedelta(days=1)
    late = replace(stopped, **runs.observe(stopped, seen("running"), next_day, RULES, in_flight=False, ended=ended))
    assert late.stop_at == next_day + timedelta(minutes=60), "who starts it again later isn't stopped at once"
    other = replace(seen("running"), containers=[replace(seen("running").containers[0], id="another")])
    anew = replace(stopped, **runs.observe(stopped, other, LATER, RULES, in_flight=False, ended=ended))
    assert anew.run_id != app.run_id
    assert anew.stop_at == LATER + timedelta(minutes=60)


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ((), "Its containers were removed."),
        (("exited", "exited"), None),
        (("dead", "created"), "S0 is dead, s1 was never started."),
    ],
)
def test_app_that_exited_by_itself_shows_reason(states: tuple[str, ...], reason: str | None) -> None:
    app = a_running_app()
    assert replace(app, **runs.observe(app, seen(*states), LATER, RULES, in_flight=False)).last_error == reason


def test_finished_one_shots_set_result_completed_until_next_run() -> None:
    app = a_running_app()
    done = replace(app, **runs.observe(app, seen("exited"), LATER, RULES, in_flight=False))
    assert (done.status, done.last_error, done.last_result) == ("stopped", None, "completed")
    again = replace(done, **runs.observe(done, seen("running"), LATER, RULES, in_flight=False))
    assert again.last_result is None
    assert started(done, a_start(done)).last_result is None
    failed = replace(seen("exited"), containers=[replace(seen("exited").containers[0], exit_code=3)])
    assert replace(app, **runs.observe(app, failed, LATER, RULES, in_flight=False)).last_result is None


def test_health_reason_is_kept_while_health_is_bad() -> None:
    app = a_running_app()
    bad = replace(app, **runs.observe(app, seen("running", "paused"), LATER, RULES, in_flight=False))
    assert (bad.health, bad.health_detail) == ("degraded", "s1 is paused")
    assert runs.observe(bad, seen("running", "paused"), LATER, RULES, in_flight=False) == {}
    good = replace(bad, **runs.observe(bad, seen("running", "running"), LATER, RULES, in_flight=False))
    assert (good.health, good.health_detail) == ("healthy", None)


def test_discovered_run_shows_real_start_and_counts_from_now() -> None:
    containers = [
        replace(container, started_at=EPOCH + timedelta(minutes=n))
        for n, container in enumerate(seen("exited", "running", "running").containers)
    ]
    app = an_app()
    found = replace(app, **runs.observe(app, replace(seen(), containers=containers), LATER, RULES, in_flight=False))
    assert found.started_at == EPOCH + timedelta(minutes=1)
    assert found.stop_at == LATER + timedelta(minutes=60)
    ahead = [replace(containers[1], started_at=LATER + timedelta(hours=1))]
    found = replace(app, **runs.observe(app, replace(seen(), containers=ahead), LATER, RULES, in_flight=False))
    assert found.started_at == LATER, "a host's clock that is ahead makes no start in the future"


def test_hung_directory_keeps_app_running_with_unknown_health() -> None:
    app, observation = a_running_app(), replace(seen("running"), problem_code=DIRECTORY_HANGS)
    assert runs.observe(app, seen("running"), LATER, RULES, in_flight=False)["health"] == "healthy"
    changes = runs.observe(app, observation, LATER, RULES, in_flight=False)
    assert changes.get("health", app.health) == "unknown"
    assert "status" not in changes
