"""Conversion between protobuf messages and the transport's types; incoming data is cleaned.

This is the only module that uses both.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from moorage_common.docker.containers import clean_state
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, OperationKind, Project
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.untrusted import LIMITS, UntrustedError, at_most

from moorage_controller.hosts import cleaning
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    Deadline,
    End,
    EndKind,
    HostApp,
    HostInfo,
    HostProject,
    Order,
    Output,
    Snapshot,
    WatchItem,
)

_KINDS = {
    OperationKind.UP: pb.OPERATION_KIND_UP,
    OperationKind.DOWN: pb.OPERATION_KIND_DOWN,
    OperationKind.RESTART: pb.OPERATION_KIND_RESTART,
}
_ENDS = {
    pb.OPERATION_END_EXITED: EndKind.EXITED,
    pb.OPERATION_END_LOST: EndKind.LOST,
    pb.OPERATION_END_BURIED: EndKind.BURIED,
}
_CANCELS = {
    pb.CANCEL_OUTCOME_SIGNALLED: CancelOutcome.SIGNALLED,
    pb.CANCEL_OUTCOME_ALREADY_ENDED: CancelOutcome.ALREADY_ENDED,
    pb.CANCEL_OUTCOME_BURIED: CancelOutcome.BURIED,
}


def app(host_app: HostApp) -> pb.App:
    """Return the message for an app."""
    last = host_app.last_project
    project = None if last is None else pb.Project(name=last.name, directory=last.directory)
    return pb.App(cd_path=host_app.cd_path, last_project=project, compose_files=host_app.compose_files)


def start_request(order: Order) -> pb.StartOperationRequest:
    """Return the message that starts an operation."""
    until = None if order.deadline is None else deadline(order.deadline)
    return pb.StartOperationRequest(
        operation_id=str(order.operation_id), kind=_KINDS[order.kind], app=app(order.app), deadline=until
    )


def deadline(told: Deadline) -> pb.Deadline:
    """Return the message with an app's deadline."""
    message = pb.Deadline(app_id=str(told.app_id), number=told.number)
    if told.run_id is not None and told.remaining is not None:
        message.run_id = str(told.run_id)
        message.remaining.FromTimedelta(told.remaining)
    return message


def host_info(host: pb.Host) -> HostInfo:
    """Read a host's facts."""
    return cleaning.host_info(
        HostInfo(
            engine_reachable=host.engine_reachable,
            engine_problem=host.engine_problem,
            running_containers=host.running_containers,
            uptime=host.uptime,
            agent_version=host.agent_version,
            engine_version=host.engine_version,
            compose_version=host.compose_version,
            journal=host.journal,
            keeps_deadlines=host.keeps_deadlines,
            knows_compose_files=host.knows_compose_files,
            disk_problem=host.disk_problem,
        )
    )


def observation(message: pb.AppObservation) -> AppObservation:
    """Read an app's observation. Raises UntrustedError."""
    at_most("containers of an app", len(message.containers), LIMITS.containers)
    named = message.HasField("project") and message.project.name
    stops = {_uuid(app_id): _uuid(operation_id) for app_id, operation_id in message.stops.items()}
    deadlines = {_uuid(app_id): count for app_id, count in message.deadlines.items()}
    return cleaning.observation(
        AppObservation(
            cd_path=message.cd_path,
            project=Project(message.project.name, message.project.directory) if named else None,
            containers=_containers(message.containers),
            looked_at=message.looked_at,
            boot_id=message.boot_id,
            problem_code=message.problem_code,
            problem=message.problem,
            replicas=dict(message.replicas),
            deadlines={app_id: count for app_id, count in deadlines.items() if app_id is not None},
            stops={app: stop for app, stop in stops.items() if app is not None and stop is not None},
        )
    )


def end(message: pb.End) -> End:
    """Read the end of an operation. Raises UntrustedError."""
    return cleaning.end(
        End(
            # A newer agent may send an unknown kind of end; the outcome is then unknown.
            kind=_ENDS.get(message.end, EndKind.LOST),
            exit_code=message.exit_code,
            length=message.length,
            cancelled_by=message.cancelled_by,
            code=message.code,
            reason=message.reason,
            observed=observation(message.observed) if message.HasField("observed") else None,
        )
    )


def output(message: pb.Output) -> Output:
    """Read a piece of output. Raises UntrustedError."""
    at_most("bytes of output before the first", -message.offset, 0)
    return Output(message.offset, message.data)


def cancel_outcome(outcome: pb.CancelOutcome.ValueType) -> CancelOutcome:
    """Read the outcome of a cancel. Raises UntrustedError for an unknown value."""
    found = _CANCELS.get(outcome)
    if found is None:
        raise UntrustedError("It said of a cancellation what isn't known.")
    return found


def watch_item(message: pb.WatchResponse, asked: Collection[str]) -> WatchItem | None:
    """Read an item of a watch. Raises UntrustedError.

    `asked` are the directories of the watched apps. Returns None for a heartbeat, for an app that is not watched, and
    for an unknown item from a newer agent.
    """
    match message.WhichOneof("content"):
        case "snapshot":
            at_most("apps", len(message.snapshot.apps), LIMITS.apps)
            # If the snapshot has several observations of an app, the last one counts.
            last = {seen.cd_path: seen for seen in message.snapshot.apps if seen.cd_path in asked}
            return Snapshot(host_info(message.snapshot.host), tuple(observation(seen) for seen in last.values()))
        case "app":
            return observation(message.app) if message.app.cd_path in asked else None
        case "host":
            return host_info(message.host)
        case _:
            return None


def projects(message: pb.ListProjectsResponse) -> list[HostProject]:
    """Read the projects of the host; invalid ones are left out. Raises UntrustedError."""
    at_most("projects", len(message.projects), LIMITS.projects)
    found = []
    for each in message.projects:
        at_most("containers of a project", len(each.containers), LIMITS.containers)
        named = Project(each.project.name, each.project.directory)
        told = HostProject(named, _containers(each.containers), tuple(each.config_files), each.environment_file)
        cleaned = cleaning.host_project(told)
        if cleaned is not None:
            found.append(cleaned)
    return found


def logs_request(host_app: HostApp, wanted: LogsWanted) -> pb.LogsRequest:
    """Return the message that asks for logs."""
    return pb.LogsRequest(
        app=app(host_app), service=wanted.service, tail=wanted.tail, since=wanted.since, follow=wanted.follow
    )


def log_lines(message: pb.LogsResponse) -> list[LogLine]:
    """Read log lines. Raises UntrustedError."""
    at_most("lines in a message", len(message.lines), LIMITS.log_lines)
    return [cleaning.log_line(LogLine(line.time, line.container, line.service, line.text)) for line in message.lines]


def _containers(several: Iterable[pb.Container]) -> tuple[ContainerState, ...]:
    """Read containers; those with an invalid id are left out."""
    found = []
    for message in several:
        with suppress(UntrustedError):
            found.append(clean_state(_container(message)))
    return tuple(found)


def _container(message: pb.Container) -> ContainerState:
    return ContainerState(
        id=message.id,
        name=message.name,
        service=message.service,
        image=message.image,
        state=message.state,
        health=message.health,
        exit_code=message.exit_code,
        one_off=message.one_off,
        started_at=_moment(message.started_at) if message.HasField("started_at") else None,
        finished_at=_moment(message.finished_at) if message.HasField("finished_at") else None,
        ports=message.ports[: LIMITS.ports + 1],
        restarts=message.restarts,
        is_restart_looping=message.unsettled,
        restart_policy=message.restart_policy,
    )


def _moment(message: Timestamp) -> datetime | None:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) <= LIMITS.word else None
    except ValueError:
        return None
