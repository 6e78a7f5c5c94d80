"""What the containers of an app say about the app. Pure: facts in, words out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

_ALIVE = frozenset({"running", "restarting", "paused", "removing"})
"""The Engine's states in which a container still holds resources; `removing` ends by itself, but hasn't yet."""


_SETTLED_SECONDS = 60


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

    `restarts` is how often its restart policy has started it again; `unsettled` as `unsettled` below says.
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
    unsettled: bool = False

    @property
    def alive(self) -> bool:
        """Whether it still runs, in the sense of the invariant: an app with a running container has a run."""
        return self.state in _ALIVE

    @property
    def done(self) -> bool:
        """Whether it is a one-shot that did its work."""
        return self.state == "exited" and self.exit_code == 0


def observed_status(containers: Sequence[ContainerState]) -> AppStatus:
    """Return `running` where at least one container runs (one-off ones count), else `stopped`."""
    return AppStatus.RUNNING if any(c.alive for c in containers) else AppStatus.STOPPED


def unsettled(container: ContainerState, engine_time: int) -> bool:
    """Tell whether a container's restart policy had to start it, and nothing shows yet that it stays up this time.

    What shows it is its health check, or a minute of running by the Engine's own clock (`engine_time`, epoch seconds).
    So an app in a restart loop is degraded all the while, and doesn't flap.
    """
    if not container.restarts or not container.alive or container.health == "healthy":
        return False
    return container.started_at is None or engine_time - container.started_at.timestamp() < _SETTLED_SECONDS


def observed_health(containers: Sequence[ContainerState], replicas: Mapping[str, int]) -> Health:
    """Judge a set of containers: the worst word wins; a one-shot that exited 0 is done, not broken.

    Created-but-never-started, failed and missing containers make an app with running ones `degraded`, and so do those
    that are restarted again and again; where nothing runs there is nothing to be healthy: `unknown`. `replicas` is how
    many containers each service is to have; empty where that isn't known.
    """
    regular = [c for c in containers if not c.one_off]
    running = [c for c in regular if c.alive]
    if not running:
        return Health.UNKNOWN
    if any(c.health == "unhealthy" for c in running):
        return Health.UNHEALTHY
    if any(not c.alive and not c.done for c in regular) or any(_limps(c) for c in running):
        return Health.DEGRADED
    there = Counter(c.service for c in regular)
    if any(there[service] < count for service, count in replicas.items()):
        return Health.DEGRADED
    if any(c.health == "starting" for c in running):
        return Health.STARTING
    return Health.HEALTHY


def _limps(container: ContainerState) -> bool:
    return container.unsettled or container.state in {"restarting", "paused"}
