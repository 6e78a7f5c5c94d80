"""Cleaning of data from hosts before it is stored, shown or logged: one function for each type of the transport.

Containers are cleaned on reading: `moorage_common.docker.containers.clean_state`.
"""

from collections.abc import Mapping
from dataclasses import replace

from moorage_common.docker.logs import LogLine
from moorage_common.docker.states import Project
from moorage_common.untrusted import (
    LIMITS,
    UntrustedError,
    at_most,
    clean_code,
    clean_line,
    clean_sentence,
    clean_text,
    key_name,
    key_path,
    number,
)

from moorage_controller.hosts.transport import AppObservation, End, HostInfo, HostProject


def host_info(told: HostInfo) -> HostInfo:
    """Return a host's facts, cleaned."""
    return replace(
        told,
        engine_problem=clean_sentence(told.engine_problem),
        running_containers=number(told.running_containers, 0, LIMITS.count),
        uptime=number(told.uptime, 0, LIMITS.int32),
        agent_version=clean_line(told.agent_version, LIMITS.version),
        engine_version=clean_line(told.engine_version, LIMITS.version),
        compose_version=clean_line(told.compose_version, LIMITS.version),
        journal=_path_or_nothing(told.journal),
        fallback=clean_sentence(told.fallback),
        disk_problem=clean_sentence(told.disk_problem),
    )


def observation(told: AppObservation) -> AppObservation:
    """Return an app's observation, cleaned. Raises UntrustedError if it exceeds the limits."""
    at_most("containers of an app", len(told.containers), LIMITS.containers)
    at_most("deadlines", max(len(told.deadlines), len(told.stops)), LIMITS.deadlines)
    return replace(
        told,
        cd_path=_path_or_nothing(told.cd_path),
        project=None if told.project is None else project(told.project),
        looked_at=number(told.looked_at, 0, LIMITS.int64),
        boot_id=clean_line(told.boot_id, LIMITS.id),
        problem_code=told.problem_code and clean_code(told.problem_code, "unknown"),
        problem=clean_sentence(told.problem),
        replicas=replicas(told.replicas),
        deadlines={app_id: number(count, 0, LIMITS.int64) for app_id, count in told.deadlines.items()},
    )


def project(told: Project) -> Project | None:
    """Return a project, cleaned; None for an invalid one."""
    try:
        return Project(key_name(told.name), key_path(told.directory))
    except UntrustedError:
        return None


def host_project(told: HostProject) -> HostProject | None:
    """Return a project with its files, cleaned; None for an invalid one."""
    named = project(told.project)
    if named is None:
        return None
    files = [path for file in told.config_files[: LIMITS.config_files] if (path := _path_or_nothing(file))]
    return HostProject(named, told.containers, tuple(files), clean_line(told.environment_file, LIMITS.path))


def replicas(told: Mapping[str, int]) -> dict[str, int]:
    """Return the expected number of containers by service; invalid numbers are left out."""
    at_most("services of an app", len(told), LIMITS.services)
    return {
        clean_line(name, LIMITS.name): number(count, 0, LIMITS.count)
        for name, count in told.items()
        if isinstance(name, str) and isinstance(count, int)
    }


def end(told: End) -> End:
    """Return the end of an operation, cleaned."""
    return replace(
        told,
        exit_code=number(told.exit_code, -LIMITS.int32, LIMITS.int32),
        length=number(told.length, 0, LIMITS.int64),
        cancelled_by=clean_line(told.cancelled_by, LIMITS.name),
        code=told.code and clean_code(told.code, "unknown"),
        reason=clean_sentence(told.reason),
    )


def log_line(told: LogLine) -> LogLine:
    """Return a log line, cleaned."""
    return LogLine(
        time=clean_line(told.time, LIMITS.word),
        container=clean_line(told.container, LIMITS.name),
        service=clean_line(told.service, LIMITS.name),
        # A single line, so that no text can imitate the prefix of another container.
        text=clean_text(told.text, LIMITS.log_text).replace("\n", " "),
    )


def _path_or_nothing(path: str) -> str:
    try:
        return key_path(path) if path else ""
    except UntrustedError:
        return ""
