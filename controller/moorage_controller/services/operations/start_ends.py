"""Start diagnosis beyond the output of Compose: containers that exited right after the start, ports in use."""

import re
from collections.abc import Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from uuid import UUID

from moorage_common.clock import Clock, within
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import AppStatus, ContainerState, is_orphan, observed_status
from moorage_common.untrusted import LIMITS, clean_sentence

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import (
    AppObservation,
    ContactLostError,
    HostApp,
    HostProject,
    HostRefusedError,
    HostTransport,
)
from moorage_controller.services.fleet.directories import directories
from moorage_controller.services.runs.transitions import why_ended
from moorage_controller.store.tables.apps import App

NO_SERVICE = "no service selected"
"""Compose's message if the files have no service, or none with an active profile."""
NO_ANSWER = (ContactLostError, HostRefusedError, HostUnreachableError, TimeoutError)
DIAGNOSIS_SECONDS = 10.0
"""Time limit in seconds for a query to a host about a failed start."""
_LOG_LINES = 10
_LOG_LINE_CHARACTERS = 200
_LOG_CHARACTERS = LIMITS.sentence * 2 // 3
_ADDRESS = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]*\]):(\d{1,5})(?!\d)")
_ALLOCATED, _IN_USE = "port is already allocated", "address already in use"
"""Engine messages: the port is used by another container, or by a process outside Docker."""


def wanted_containers(observed: AppObservation) -> list[ContainerState]:
    """Return the containers that a start concerns: those of services with replicas, as far as that is known."""
    replicas = observed.replicas
    return [c for c in observed.containers if not c.one_off and (not replicas or replicas.get(c.service))]


def exited_early(observed: AppObservation | None) -> list[ContainerState]:
    """Return the containers that failed if a start left nothing running; empty if none failed."""
    if observed is None or observed_status(observed.containers) is AppStatus.RUNNING:
        return []
    ended = [c for c in wanted_containers(observed) if not c.done]
    return ended if any(c.state == "exited" for c in ended) else []


async def early_exit_sentence(
    transport: HostTransport, app: HostApp, ended: Sequence[ContainerState], clock: Clock
) -> str:
    """Return a sentence with the ended containers, their exit codes and the last log lines of the first of them."""
    first = next(c for c in ended if c.state == "exited")
    lines: Sequence[LogLine] = ()
    # The reason is useful even without the log.
    with suppress(*NO_ANSWER):
        lines = await within(DIAGNOSIS_SECONDS, _last_lines(transport, app, first), clock)
    reason = f"{why_ended(ended)} right after the start, and nothing is running"
    said = _end_of([line.text.strip()[:_LOG_LINE_CHARACTERS] for line in lines])
    return clean_sentence(f"{reason}. The log of {first.name} ends: {said}" if said else f"{reason}.")


async def _last_lines(transport: HostTransport, app: HostApp, container: ContainerState) -> Sequence[LogLine]:
    lines: list[LogLine] = []
    async with aclosing(transport.logs(app, LogsWanted(container.service, _LOG_LINES))) as batches:
        async for batch in batches:
            lines = [*lines, *(line for line in batch if line.container == container.name)][-_LOG_LINES:]
    return lines


def _end_of(texts: Sequence[str]) -> str:
    kept: list[str] = []
    for text in reversed([text for text in texts if text]):
        if sum(map(len, kept)) + len(text) > _LOG_CHARACTERS:
            break
        kept.insert(0, text)
    return " | ".join(kept)


def taken_port(said: str) -> int | None:
    """Return the port named in Compose's message if it is already in use; None for other failures."""
    if _ALLOCATED not in said and _IN_USE not in said:
        return None
    found = _ADDRESS.search(said)
    return int(found[1]) if found is not None and 0 < int(found[1]) <= 65535 else None  # noqa: PLR2004 - the highest TCP port


@dataclass(frozen=True, slots=True)
class TakenPort:
    """A port in use on which a start failed; `said` is Compose's message, `observed` the later state of the app."""

    port: int
    said: str
    app_id: UUID
    observed: AppObservation

    def sentence(self, projects: Collection[HostProject], apps: Collection[App]) -> str:
        """Return a sentence on the port's owner and the remedy; `projects` and `apps` are those of the server."""
        other = "or publish another port in the compose file."
        for found in projects:
            for container in found.containers:
                if container.alive and any(f":{self.port}->" in published for published in container.ports):
                    whose = self._whose(found, container, apps)
                    return clean_sentence(
                        f"Port {self.port} is taken by the container {container.name} {whose}, {other}"
                    )
        if _ALLOCATED in self.said:
            return (
                f"Port {self.port} is taken by another container on the host, of no Compose project that Moorage may "
                f"see: find it there with `docker ps --filter publish={self.port}` and stop it, {other}"
            )
        return (
            f"Port {self.port} is taken by a process outside Docker: find it on the host with `ss -lntup 'sport = "
            f":{self.port}'` and stop it, {other}"
        )

    def _whose(self, found: HostProject, container: ContainerState, apps: Collection[App]) -> str:
        if container.id in {c.id for c in self.observed.containers}:
            if is_orphan(container, self.observed.replicas):
                return "of this app, whose service is no more in its files: restart the app, which removes it"
            return "of this app itself: let one of its services alone have it"
        project = found.project
        for app in apps:
            if app.id != self.app_id and project.directory in directories(app):
                return f"of the app {app.name}: stop that app"
        return f"of the Compose project {project.name} in {project.directory}, which is no app: stop it on the host"
