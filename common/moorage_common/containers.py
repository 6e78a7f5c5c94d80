"""Containers of Compose projects, as the Engine's API (any version since 1.24) shows them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from moorage_common.states import ContainerState, Project, unsettled

PROJECT = "com.docker.compose.project"
DIRECTORY = "com.docker.compose.project.working_dir"
SERVICE = "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"
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
"""All but the noise: each health check alone makes three exec events."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of some Compose project: its state, and whose it is; `directory` has its links resolved."""

    state: ContainerState
    project: str
    directory: str


RealPath = Callable[[str], str]
"""Resolves the links of a path on the host."""


def named_directory(labels: Mapping[str, str]) -> str:
    """Return the directory that a container's labels name, links and all."""
    return labels.get(DIRECTORY) or "/"


def settled_states(containers: Iterable[Container], engine_time: int) -> tuple[ContainerState, ...]:
    """Return the states by name, each judged as of an Engine's time (epoch seconds)."""
    states = (replace(c.state, unsettled=unsettled(c.state, engine_time)) for c in containers)
    return tuple(sorted(states, key=lambda state: state.name))


def by_project(containers: Iterable[Container]) -> dict[Project, list[ContainerState]]:
    """Return the projects that containers belong to, each with their states."""
    found: dict[Project, list[ContainerState]] = {}
    for container in containers:
        found.setdefault(Project(container.project, container.directory), []).append(container.state)
    return found


def of_labels(labels: Mapping[str, str], real_path: RealPath) -> Container:
    """Return whose a container is, from its labels alone: its state is left empty."""
    state = ContainerState(id="", name="", service=labels.get(SERVICE, ""), image="", state="")
    return Container(state, labels[PROJECT], real_path(named_directory(labels)))


def of_inspection(about: Mapping[str, Any], real_path: RealPath) -> Container | None:
    """Read what the Engine says of a container that is inspected; None for one of no Compose project."""
    labels = about["Config"]["Labels"] or {}
    if PROJECT not in labels:
        return None
    state = about["State"]
    seen = ContainerState(
        id=about["Id"],
        name=about["Name"].removeprefix("/"),
        service=labels.get(SERVICE, ""),
        image=about["Config"]["Image"],
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", "").replace("none", ""),
        exit_code=state["ExitCode"],
        one_off=labels.get(ONE_OFF, "").lower() == "true",
        started_at=_moment(state["StartedAt"]),
        finished_at=_moment(state["FinishedAt"]),
        ports=tuple(_ports((about.get("NetworkSettings") or {}).get("Ports") or {})),
        restarts=about.get("RestartCount", 0),
    )
    return Container(seen, labels[PROJECT], real_path(named_directory(labels)))


def _moment(text: str) -> datetime | None:
    # The Engine writes year 1 for "never".
    return None if text.startswith("0001-") else datetime.fromisoformat(text)


def _ports(ports: Mapping[str, Iterable[Mapping[str, str]] | None]) -> Iterator[str]:
    for inner, outer in sorted(ports.items()):
        if not outer:
            yield inner
        for place in outer or ():
            yield f"{place['HostIp']}:{place['HostPort']}->{inner}"
