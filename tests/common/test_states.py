"""The status and health of an app, from its containers."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.docker.states import AppStatus, ContainerState, Health, is_restart_looping, judge, observed_status

UP = ContainerState(id="1", name="web-a-1", service="a", image="a:1", state="running")
DONE = replace(UP, state="exited", exit_code=0)
FAILED = replace(UP, state="exited", exit_code=1)
CREATED = replace(UP, state="created")
ONE_OFF = replace(UP, one_off=True)
STATES = ["created", "running", "paused", "restarting", "removing", "exited", "dead"]

containers = st.builds(
    ContainerState,
    id=st.just("1"),
    name=st.just("n"),
    service=st.just("s"),
    image=st.just("i"),
    state=st.sampled_from(STATES),
    health=st.sampled_from(["", "starting", "healthy", "unhealthy"]),
    exit_code=st.sampled_from([0, 1, 137]),
    one_off=st.booleans(),
)


@pytest.mark.parametrize("state", STATES)
def test_app_is_running_while_one_container_is_alive(state: str) -> None:
    alive = state in {"running", "restarting", "paused", "removing"}
    expected = AppStatus.RUNNING if alive else AppStatus.STOPPED
    assert observed_status([DONE, replace(UP, state=state)]) is expected
    assert observed_status([replace(ONE_OFF, state=state)]) is expected


@pytest.mark.parametrize(
    ("found", "health"),
    [
        ([], Health.UNKNOWN),
        ([DONE], Health.UNKNOWN),
        ([FAILED, CREATED], Health.UNKNOWN),
        ([ONE_OFF], Health.UNKNOWN),
        ([UP], Health.HEALTHY),
        ([UP, DONE], Health.HEALTHY),
        ([UP, replace(ONE_OFF, health="unhealthy")], Health.HEALTHY),
        ([replace(UP, health="healthy"), UP], Health.HEALTHY),
        ([replace(UP, health="starting"), UP], Health.STARTING),
        ([UP, FAILED], Health.DEGRADED),
        ([UP, replace(DONE, restart_policy="always")], Health.DEGRADED),
        ([UP, replace(DONE, restart_policy="unless-stopped")], Health.DEGRADED),
        ([UP, replace(DONE, restart_policy="on-failure")], Health.HEALTHY),
        ([UP, replace(DONE, restart_policy="no")], Health.HEALTHY),
        ([UP, CREATED], Health.DEGRADED),
        ([UP, replace(UP, state="dead")], Health.DEGRADED),
        ([UP, replace(UP, state="restarting")], Health.DEGRADED),
        ([replace(UP, state="paused")], Health.DEGRADED),
        ([replace(UP, is_restart_looping=True)], Health.DEGRADED),
        ([replace(UP, health="starting"), FAILED], Health.DEGRADED),
        ([replace(UP, health="unhealthy"), FAILED], Health.UNHEALTHY),
    ],
)
def test_worst_container_state_determines_health(found: list[ContainerState], health: Health) -> None:
    assert judge(found, {}).health is health


@pytest.mark.parametrize(
    ("found", "replicas", "health"),
    [
        ([UP], {"a": 1}, Health.HEALTHY),
        ([UP], {}, Health.HEALTHY),
        ([UP, UP], {"a": 1}, Health.HEALTHY),
        ([UP], {"a": 2}, Health.DEGRADED),
        ([UP], {"a": 1, "b": 1}, Health.DEGRADED),
        ([UP], {"a": 1, "b": 0}, Health.HEALTHY),
        ([UP, replace(DONE, service="b")], {"a": 1, "b": 1}, Health.HEALTHY),
        ([UP, replace(ONE_OFF, service="b")], {"a": 1, "b": 1}, Health.DEGRADED),
        ([replace(UP, health="starting")], {"a": 2}, Health.DEGRADED),
        ([], {"a": 1}, Health.UNKNOWN),
        ([UP, replace(FAILED, service="gone")], {"a": 1}, Health.HEALTHY),
        ([replace(UP, service="gone")], {"a": 1}, Health.DEGRADED),
        ([replace(UP, service="gone")], {"a": 0}, Health.UNKNOWN),
    ],
)
def test_too_few_containers_degrade_health(
    found: list[ContainerState], replicas: dict[str, int], health: Health
) -> None:
    assert judge(found, replicas).health is health


B = replace(UP, name="web-b-1", service="b")
B2 = replace(B, name="web-b-2")
AT_NOON = datetime(2026, 5, 6, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([UP, B], None),
        ([replace(UP, state="paused"), B], "a is paused"),
        ([UP, replace(B, state="exited", exit_code=3)], "b exited with code 3"),
        (
            [UP, replace(B, state="exited", exit_code=1, finished_at=AT_NOON)],
            "b exited with code 1 at 2026-05-06 12:00 UTC",
        ),
        (
            [UP, replace(B, state="exited", finished_at=AT_NOON, restart_policy="always")],
            "b exited with code 0 at 2026-05-06 12:00 UTC, and its restart policy is always",
        ),
        ([UP, replace(B, state="created")], "b was never started"),
        ([UP, replace(B, state="dead")], "b is dead"),
        ([UP, replace(B, is_restart_looping=True)], "b is restarted again and again by its restart policy"),
        ([UP, replace(B, state="restarting")], "b is restarted again and again by its restart policy"),
        ([replace(B, health="starting"), UP], "b is starting"),
        ([replace(B, health="unhealthy"), UP], "b is unhealthy: its health check fails"),
        ([UP, B, replace(B2, state="paused")], "web-b-2 is paused"),
        (
            [B2, replace(UP, state="dead"), replace(B, health="unhealthy")],
            "web-b-1 is unhealthy: its health check fails; a is dead",
        ),
        (
            [UP, *(replace(UP, service=s, state="created") for s in "bcdef")],
            "b was never started; c was never started; d was never started; and 2 more",
        ),
    ],
)
def test_bad_health_has_a_reason(found: list[ContainerState], reason: str | None) -> None:
    assert judge(found, {}).reason == reason
    assert judge(found[::-1], {}).reason == reason


def test_missing_replicas_are_a_reason() -> None:
    assert judge([UP], {"a": 2}).reason == "a has 1 of 2 replicas"
    assert judge([UP, UP], {"a": 3, "b": 1}).reason == "a has 2 of 3 replicas; b has 0 of 1 replicas"


STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)
RESTARTED = replace(UP, restarts=3, started_at=STARTED_AT)


@pytest.mark.parametrize(
    ("container", "seconds", "expected"),
    [
        (RESTARTED, 0, True),
        (RESTARTED, 59, True),
        (RESTARTED, 60, False),
        (replace(RESTARTED, health="healthy"), 0, False),
        (replace(RESTARTED, health="starting"), 0, True),
        (replace(RESTARTED, restarts=0), 0, False),
        (replace(RESTARTED, state="exited"), 0, False),
        (replace(RESTARTED, started_at=None), 10**6, True),
    ],
)
def test_restarted_container_counts_as_looping_until_it_stays_up(
    container: ContainerState, seconds: int, *, expected: bool
) -> None:
    assert is_restart_looping(container, int(STARTED_AT.timestamp()) + seconds) is expected


@given(st.lists(containers, max_size=5))
def test_container_order_is_irrelevant_and_stopped_app_is_never_healthy(found: list[ContainerState]) -> None:
    assert judge(found[::-1], {}).health is judge(found, {}).health
    assert observed_status(found[::-1]) is observed_status(found)
    if judge(found, {}).health is not Health.UNKNOWN:
        assert observed_status(found) is AppStatus.RUNNING
