"""What the containers of an app say about the app. Pure: facts in, words out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

_ALIVE = frozenset({"running", "restarting", "paused", "removing"})
"""The Engine's states in which a container still holds resources; `removing` ends by itself, but hasn't yet."""


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
    """One container as the Engine shows it; `state` and `health` are the Engine's own words."""

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


def observed_health(containers: Sequence[ContainerState]) -> Health:
    """Judge a set of containers: the worst word wins; a one-shot that exited 0 is done, not broken.

    Created-but-never-started and failed containers make an app with running ones `degraded`; where nothing runs
    there is nothing to be healthy: `unknown`.
    """
    regular = [c for c in containers if not c.one_off]
    running = [c for c in regular if c.alive]
    if not running:
        return Health.UNKNOWN
    if any(c.health == "unhealthy" for c in running):
        return Health.UNHEALTHY
    if any(not c.alive and not c.done for c in regular) or any(c.state in {"restarting", "paused"} for c in running):
        return Health.DEGRADED
    if any(c.health == "starting" for c in running):
        return Health.STARTING
    return Health.HEALTHY
