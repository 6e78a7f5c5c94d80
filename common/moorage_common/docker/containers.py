"""Containers of Compose projects, parsed from the Engine's API (any version since 1.24)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from moorage_common.docker.states import ContainerState, Project, is_restart_looping
from moorage_common.untrusted import (
    LIMITS,
    UntrustedError,
    clean_line,
    key_id,
    key_name,
    key_path,
    known_word,
    number,
)

PROJECT = "com.docker.compose.project"
DIRECTORY = "com.docker.compose.project.working_dir"
SERVICE = "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"
CONFIG_FILES = "com.docker.compose.project.config_files"
ENVIRONMENT_FILE = "com.docker.compose.project.environment_file"
EVENTS = (
    "create",
    "start",
    "restart",
    "die",
    "stop",
    "kill",
    "oom",
    "pause",
    "unpause",
    "rename",
    "destroy",
    "health_status",
)
"""Without the noise: each health check alone makes three exec events."""
_STATES = frozenset({"created", "running", "paused", "restarting", "removing", "exited", "dead", "stopping", "stopped"})
"""The last two are Podman's."""
_HEALTHS = frozenset({"starting", "healthy", "unhealthy"})
_RESTART_POLICIES = frozenset({"no", "always", "unless-stopped", "on-failure"})


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a Compose project: its state and its owner; its paths have their symlinks resolved.

    `config_files` and `environment_file` are the arguments of its `up`, empty if its labels don't have them.
    """

    state: ContainerState
    project: str
    directory: str
    config_files: tuple[str, ...] = ()
    environment_file: str = ""


@dataclass(slots=True)
class ProjectContainers:
    """The states of a project's containers, and the files they were started with."""

    states: list[ContainerState] = field(default_factory=list)
    config_files: list[str] = field(default_factory=list)
    environment_file: str = ""


RealPath = Callable[[str], str]
"""Resolves the symlinks of a path on the host."""


def named_directory(labels: Mapping[str, str]) -> str:
    """Return the directory in a container's labels, symlinks unresolved."""
    return labels.get(DIRECTORY) or "/"


def settled_states(containers: Iterable[Container], engine_time: int) -> tuple[ContainerState, ...]:
    """Return the states sorted by name, judged at an Engine's time (epoch seconds)."""
    states = (replace(c.state, is_restart_looping=is_restart_looping(c.state, engine_time)) for c in containers)
    return tuple(sorted(states, key=lambda state: state.name))


def by_project(containers: Iterable[Container]) -> dict[Project, ProjectContainers]:
    """Group containers by project."""
    found: dict[Project, ProjectContainers] = {}
    for container in containers:
        project = found.setdefault(Project(container.project, container.directory), ProjectContainers())
        project.states.append(container.state)
        project.config_files += [file for file in container.config_files if file not in project.config_files]
        project.config_files = project.config_files[: LIMITS.config_files]
        project.environment_file = project.environment_file or container.environment_file
    return found


def of_labels(labels: Mapping[str, str], real_path: RealPath) -> Container | None:
    """Parse a container from its labels alone: its state is left empty. None if it has no project."""
    owner = _owner(labels)
    if owner is None:
        return None
    service = clean_line(labels.get(SERVICE, ""), LIMITS.name)
    state = ContainerState(id="", name="", service=service, image="", state="")
    return Container(state, owner.name, real_path(owner.directory))


def owner_directory(about: Mapping[str, Any]) -> str | None:
    """Return the directory in an inspected container's labels, None if it is in no Compose project."""
    owner = _owner(about["Config"]["Labels"] or {})
    return None if owner is None else owner.directory


def state_word(word: object) -> str:
    """Return the Engine's word for a container's state; `unknown` for any other."""
    return known_word(word, _STATES)


def clean_state(seen: ContainerState) -> ContainerState:
    """Return a container cleaned for storage and display. Raises UntrustedError for an invalid id."""
    return replace(
        seen,
        id=key_id(seen.id),
        name=clean_line(seen.name, LIMITS.name),
        service=clean_line(seen.service, LIMITS.name),
        image=clean_line(seen.image, LIMITS.image),
        state=state_word(seen.state),
        health=known_word(seen.health, _HEALTHS, ""),
        exit_code=number(seen.exit_code, -LIMITS.int32, LIMITS.int32),
        ports=_some([clean_line(port, LIMITS.port) for port in seen.ports[: LIMITS.ports + 1]]),
        restarts=number(seen.restarts, 0, LIMITS.int32),
        restart_policy=known_word(seen.restart_policy, _RESTART_POLICIES, ""),
    )


def of_inspection(about: Mapping[str, Any], real_path: RealPath) -> Container | None:
    """Parse the Engine's inspection of a container; None if it is in no Compose project.

    Raises UntrustedError, and the errors of an unexpected shape: see `engine_http.understanding`.
    """
    labels = about["Config"]["Labels"] or {}
    owner = _owner(labels)
    if owner is None:
        return None
    state = about["State"]
    seen = ContainerState(
        id=about["Id"],
        name=about["Name"].removeprefix("/"),
        service=labels.get(SERVICE, ""),
        image=about["Config"]["Image"],
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        exit_code=state["ExitCode"],
        one_off=labels.get(ONE_OFF, "").lower() == "true",
        started_at=_moment(state["StartedAt"]),
        finished_at=_moment(state["FinishedAt"]),
        ports=tuple(islice(_ports((about.get("NetworkSettings") or {}).get("Ports") or {}), LIMITS.ports + 1)),
        restarts=about.get("RestartCount", 0),
        restart_policy=((about.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name", ""),
    )
    files = tuple(map(real_path, labelled_paths(labels.get(CONFIG_FILES, ""))))
    settings = clean_line(labels.get(ENVIRONMENT_FILE, ""), LIMITS.path)
    return Container(clean_state(seen), owner.name, real_path(owner.directory), files, settings)


def labelled_paths(label: str) -> Sequence[str]:
    """Return the absolute paths listed in a label of Compose; none if it isn't such a list."""
    try:
        return [key_path(path) for path in label.split(",", LIMITS.config_files)[: LIMITS.config_files] if path]
    except (UntrustedError, AttributeError):
        return []


def _owner(labels: Mapping[str, str]) -> Project | None:
    """Return the project and the directory in the labels; None if missing or invalid."""
    try:
        return Project(key_name(labels[PROJECT]), key_path(named_directory(labels))) if PROJECT in labels else None
    except UntrustedError:
        return None


def _some(ports: Sequence[str]) -> tuple[str, ...]:
    return tuple(ports) if len(ports) <= LIMITS.ports else (*ports[: LIMITS.ports - 1], "…")


def _moment(text: str) -> datetime | None:
    # The Engine writes year 1 for "never".
    if text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UntrustedError("A time was none.") from None


def _ports(ports: Mapping[str, Iterable[Mapping[str, str]] | None]) -> Iterator[str]:
    # One more than is shown indicates that there are more.
    for inner, outer in islice(sorted(ports.items()), LIMITS.ports + 1):
        if not outer:
            yield inner
        for place in islice(outer or (), LIMITS.ports + 1):
            yield f"{place['HostIp']}:{place['HostPort']}->{inner}"
