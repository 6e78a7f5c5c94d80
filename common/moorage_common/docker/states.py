"""An app's status and health, derived from its containers. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

_ALIVE = frozenset({"running", "restarting", "paused", "removing"})
"""The Engine's states in which a container still holds resources; `removing` is one until it ends by itself."""
_SETTLED_SECONDS = 60
_MOST_REASONS = 3
_KEPT_UP = frozenset({"always", "unless-stopped"})
"""Restart policies that keep a container up. `on-failure` isn't one: a container that exits with 0 is done."""


class AppStatus(StrEnum):
    """The API's four values of an app's status."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Health(StrEnum):
    """The API's values of a running app's health."""

    HEALTHY = "healthy"
    STARTING = "starting"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class OperationKind(StrEnum):
    """The kinds of operations, named after Compose's commands."""

    UP = "up"
    DOWN = "down"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Project:
    """A Compose project: its name, and the real directory in its containers' labels."""

    name: str
    directory: str


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One container as the Engine reports it; `state` and `health` are the Engine's own words.

    `restarts` counts the restarts by its restart policy; `is_restart_looping`: see the function.
    `restart_policy` is the Engine's word too, empty if it isn't known.
    """

    id: str
    name: str
    service: str
    image: str
    state: str
    health: str = ""
    exit_code: int = 0
    one_off: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ports: Sequence[str] = field(default_factory=tuple)
    restarts: int = 0
    is_restart_looping: bool = False
    restart_policy: str = ""

    @property
    def alive(self) -> bool:
        """Whether it still runs, as in the invariant that an app with a running container has a run."""
        return self.state in _ALIVE

    @property
    def done(self) -> bool:
        """Whether it exited successfully."""
        return self.state == "exited" and self.exit_code == 0

    @property
    def completed(self) -> bool:
        """Whether it is a successful one-shot: a container that its restart policy keeps up isn't a one-shot."""
        return self.done and self.restart_policy not in _KEPT_UP


@dataclass(frozen=True, slots=True)
class Judgement:
    """An app's health, and the reason as a part of a sentence; None if no reason is needed.

    A reason is constant while the state is: it contains points in time, never durations since then.
    """

    health: Health
    reason: str | None = None


def observed_status(containers: Sequence[ContainerState]) -> AppStatus:
    """Return `running` if at least one container runs (one-off ones count), else `stopped`."""
    return AppStatus.RUNNING if any(c.alive for c in containers) else AppStatus.STOPPED


def is_restart_looping(container: ContainerState, engine_time: int) -> bool:
    """Return whether a container was restarted by its restart policy and isn't proved stable yet.

    The proof is its health check, or a minute of running by the Engine's own clock (`engine_time`, epoch seconds).
    So an app in a restart loop is degraded all the time, and doesn't flap.
    """
    if not container.restarts or not container.alive or container.health == "healthy":
        return False
    return container.started_at is None or engine_time - container.started_at.timestamp() < _SETTLED_SECONDS


def judge(containers: Sequence[ContainerState], replicas: Mapping[str, int]) -> Judgement:
    """Judge a set of containers: the worst health wins; a one-shot that exited with 0 is done, not failed.

    Created-but-never-started, failed and missing containers make an app with running ones `degraded`, and so do those
    that are restarted repeatedly, and those that are down although their restart policy keeps them up; an app without
    running containers is `unknown`. `replicas` is the desired number of containers of each service; empty if that
    isn't known. Containers of other services are orphans, and don't count.
    """
    regular = [c for c in containers if not c.one_off]
    if not any(c.alive for c in regular):
        return Judgement(Health.UNKNOWN)
    wanted = sorted((c for c in regular if not is_orphan(c, replicas)), key=lambda c: (c.service, c.name))
    there = Counter(c.service for c in wanted)
    running = [c for c in wanted if c.alive]
    unhealthy = [f"{_named(c, there)} is unhealthy: its health check fails" for c in running if c.health == "unhealthy"]
    degraded = [f"{_named(c, there)} {trouble}" for c in wanted if (trouble := _trouble(c))]
    degraded += [
        f"{service} has {there[service]} of {count} replicas"
        for service, count in sorted(replicas.items())
        if there[service] < count
    ]
    if unhealthy or degraded:
        return Judgement(Health.UNHEALTHY if unhealthy else Health.DEGRADED, _listed([*unhealthy, *degraded]))
    starting = [f"{_named(c, there)} is starting" for c in running if c.health == "starting"]
    if starting:
        return Judgement(Health.STARTING, _listed(starting))
    return Judgement(Health.HEALTHY if running else Health.UNKNOWN)


def is_orphan(container: ContainerState, replicas: Mapping[str, int]) -> bool:
    """Return whether a container's service is no longer in the app's files; False if those aren't known."""
    return bool(replicas) and not container.one_off and container.service not in replicas


def _named(container: ContainerState, there: Mapping[str, int]) -> str:
    return container.name if there[container.service] > 1 or not container.service else container.service


def _trouble(container: ContainerState) -> str:
    """Return a container's problem besides its health check, as a predicate; empty if it has none."""
    if container.state == "paused":
        return "is paused"
    if container.state == "restarting" or container.is_restart_looping:
        return "is restarted again and again by its restart policy"
    if container.alive or container.completed:
        return ""
    if container.state == "created":
        return "was never started"
    if container.state != "exited":
        return f"is {container.state}"
    moment = "" if container.finished_at is None else f" at {container.finished_at:%Y-%m-%d %H:%M} UTC"
    policy = f", and its restart policy is {container.restart_policy}" if container.done else ""
    return f"exited with code {container.exit_code}{moment}{policy}"


def _listed(reasons: Sequence[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    return "; ".join([*reasons[:_MOST_REASONS], *([f"and {more} more"] if more > 0 else [])])
