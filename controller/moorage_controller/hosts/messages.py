"""Wire messages to the transport's types and back; the only place that knows both."""

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from moorage_common.logs import LogLine, LogsWanted
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.states import ContainerState, OperationKind, Project

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
    """Return the message that names an app."""
    last = host_app.last_project
    project = None if last is None else pb.Project(name=last.name, directory=last.directory)
    return pb.App(cd_path=host_app.cd_path, last_project=project)


def start_request(order: Order) -> pb.StartOperationRequest:
    """Return the message that starts an operation."""
    until = None if order.deadline is None else deadline(order.deadline)
    return pb.StartOperationRequest(
        operation_id=str(order.operation_id), kind=_KINDS[order.kind], app=app(order.app), deadline=until
    )


def deadline(told: Deadline) -> pb.Deadline:
    """Return the message that says how long an app may run."""
    message = pb.Deadline(app_id=str(told.app_id), number=told.number)
    if told.run_id is not None and told.remaining is not None:
        message.run_id = str(told.run_id)
        message.remaining.FromTimedelta(told.remaining)
    return message


def host_info(host: pb.Host) -> HostInfo:
    """Read a host's facts."""
    return HostInfo(
        engine_reachable=host.engine_reachable,
        engine_problem=host.engine_problem,
        running_containers=host.running_containers,
        uptime=host.uptime,
        agent_version=host.agent_version,
        engine_version=host.engine_version,
        compose_version=host.compose_version,
        journal=host.journal,
        keeps_deadlines=host.keeps_deadlines,
    )


def observation(message: pb.AppObservation) -> AppObservation:
    """Read what was seen of an app."""
    named = message.HasField("project") and message.project.name
    return AppObservation(
        cd_path=message.cd_path,
        project=Project(message.project.name, message.project.directory) if named else None,
        containers=tuple(_container(c) for c in message.containers),
        looked_at=message.looked_at,
        boot_id=message.boot_id,
        problem_code=message.problem_code,
        problem=message.problem,
        replicas=dict(message.replicas),
        deadlines={UUID(app_id): number for app_id, number in message.deadlines.items()},
        stops={UUID(app_id): UUID(operation_id) for app_id, operation_id in message.stops.items()},
    )


def end(message: pb.End) -> End:
    """Read the end of an operation."""
    return End(
        kind=_ENDS[message.end],
        exit_code=message.exit_code,
        length=message.length,
        cancelled_by=message.cancelled_by,
        code=message.code,
        reason=message.reason,
        observed=observation(message.observed) if message.HasField("observed") else None,
    )


def cancel_outcome(outcome: pb.CancelOutcome.ValueType) -> CancelOutcome:
    """Read what became of a cancel."""
    return _CANCELS[outcome]


def watch_item(message: pb.WatchResponse) -> WatchItem | None:
    """Read an item of a watch; None for a heartbeat, and for what a newer agent may send."""
    match message.WhichOneof("content"):
        case "snapshot":
            return Snapshot(host_info(message.snapshot.host), tuple(observation(a) for a in message.snapshot.apps))
        case "app":
            return observation(message.app)
        case "host":
            return host_info(message.host)
        case _:
            return None


def project(message: pb.HostProject) -> HostProject:
    """Read a project of the host."""
    named = Project(message.project.name, message.project.directory)
    return HostProject(named, tuple(_container(c) for c in message.containers))


def logs_request(host_app: HostApp, wanted: LogsWanted) -> pb.LogsRequest:
    """Return the message that asks for logs."""
    return pb.LogsRequest(
        app=app(host_app), service=wanted.service, tail=wanted.tail, since=wanted.since, follow=wanted.follow
    )


def log_lines(message: pb.LogsResponse) -> list[LogLine]:
    """Read lines."""
    return [LogLine(line.time, line.container, line.service, line.text) for line in message.lines]


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
        ports=tuple(message.ports),
        restarts=message.restarts,
        unsettled=message.unsettled,
    )


def _moment(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
