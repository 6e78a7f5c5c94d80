"""What the containers of an app say about the app. Pure: facts in, words out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

_ALIVE = frozenset({"running", "restarting", "paused", "removing"})
"""The Engine's states in which a container still holds resources; `removing` ends by itself, but hasn't yet."""


_SETTLED_SECONDS = 60
_MOST_REASONS = 3
_KEPT_UP = frozenset({"always", "unless-stopped"})
"""Restart policies by which a container is to run for good. `on-failure` is none: who exits with 0 is done."""


class AppStatus(StrEnum):
    """The four words of the API for an app's status."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Health(StrEnum):
    """The API's words for how well a running app runs."""

    HEALTHY = "healthy"
    STARTING = "starting"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class OperationKind(StrEnum):
    """What an operation does, in Compose's words."""

    UP = "up"
    DOWN = "down"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Project:
    """The Compose project an app is: its name, and the real directory that Compose labels its containers with."""

    name: str
    directory: str


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One container as the Engine shows it; `state` and `health` are the Engine's own words.

    `restarts` is how often its restart policy has started it again; `is_restart_looping`: see the function.
    `restart_policy` is the Engine's word too, empty where it isn't known.
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
        """Whether it still runs, in the sense of the invariant: an app with a running container has a run."""
        return self.state in _ALIVE

    @property
    def done(self) -> bool:
        """Whether it ended well."""
        return self.state == "exited" and self.exit_code == 0

    @property
    def completed(self) -> bool:
        """Whether it is a one-shot that did its work: one that its restart policy wants up isn't."""
        return self.done and self.restart_policy not in _KEPT_UP


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well an app runs, and why so, as a part of a sentence; None where that needs no word.

    A reason stays the same for as long as the state does: it names moments, and never how long ago they were.
    """

    health: Health
    reason: str | None = None


def observed_status(containers: Sequence[ContainerState]) -> AppStatus:
    """Return `running` where at least one container runs (one-off ones count), else `stopped`."""
    return AppStatus.RUNNING if any(c.alive for c in containers) else AppStatus.STOPPED


def is_restart_looping(container: ContainerState, engine_time: int) -> bool:
    """Tell whether a container's restart policy had to start it, and nothing shows yet that it stays up this time.

    What shows it is its health check, or a minute of running by the Engine's own clock (`engine_time`, epoch seconds).
    So an app in a restart loop is degraded all the while, and doesn't flap.
    """
    if not container.restarts or not container.alive or container.health == "healthy":
        return False
    return container.started_at is None or engine_time - container.started_at.timestamp() < _SETTLED_SECONDS


def judge(containers: Sequence[ContainerState], replicas: Mapping[str, int]) -> Judgement:
    """Judge a set of containers: the worst word wins; a one-shot that exited 0 is done, not broken.

    Created-but-never-started, failed and missing containers make an app with running ones `degraded`, and so do those
    that are restarted again and again, and those that are down although their restart policy wants them up; where
    nothing runs there is nothing to be healthy: `unknown`. `replicas` is how many containers each service is to have;
    empty where that isn't known. Containers of other services are orphans, and don't count.
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
    """Tell whether a container's service is no more in the app's files; False where those aren't known."""
    return bool(replicas) and not container.one_off and container.service not in replicas


def _named(container: ContainerState, there: Mapping[str, int]) -> str:
    return container.name if there[container.service] > 1 or not container.service else container.service


def _trouble(container: ContainerState) -> str:
    """Return what is wrong with a container beside its health check, as a predicate; empty for nothing."""
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
