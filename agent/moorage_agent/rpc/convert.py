"""Conversions between protobuf messages and the agent's types; the only module that knows both."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from moorage_common.compose.command import is_own_file
from moorage_common.docker.containers import ProjectContainers
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, OperationKind, Project
from moorage_common.journal.journal import CancelOutcome, Record, State
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.untrusted import LIMITS, clean_sentence

from moorage_agent.apps.identities import WatchedApp
from moorage_agent.build import build
from moorage_agent.docker.watch import HostState, Observation, Snapshot, WatchItem
from moorage_agent.errors import RefusalError

_BATCH_CHARACTERS = 64 * 1024
_BATCH_LINES = 1000
_MESSAGE_BYTES = LIMITS.message // 4
Shown = TypeVar("Shown", pb.AppObservation, pb.HostProject)
_KINDS = {
    pb.OPERATION_KIND_UP: OperationKind.UP,
    pb.OPERATION_KIND_DOWN: OperationKind.DOWN,
    pb.OPERATION_KIND_RESTART: OperationKind.RESTART,
}
_ENDS = {
    State.EXITED: pb.OPERATION_END_EXITED,
    State.LOST: pb.OPERATION_END_LOST,
    State.BURIED: pb.OPERATION_END_BURIED,
}
_CANCELS = {
    CancelOutcome.SIGNALLED: pb.CANCEL_OUTCOME_SIGNALLED,
    CancelOutcome.ALREADY_ENDED: pb.CANCEL_OUTCOME_ALREADY_ENDED,
    CancelOutcome.BURIED: pb.CANCEL_OUTCOME_BURIED,
}


def kind(value: "pb.OperationKind.ValueType") -> OperationKind:
    """Read an operation's kind. Raises RefusalError for one this agent doesn't know."""
    if value not in _KINDS:
        raise RefusalError("invalid_request", "This agent doesn't know that kind of operation: upgrade it.")
    return _KINDS[value]


def watched_app(message: pb.App) -> WatchedApp:
    """Parse the controller's description of an app."""
    last = message.last_project
    files = tuple(message.compose_files)
    if len(files) > LIMITS.config_files or not all(is_own_file(file) for file in files):
        raise RefusalError("invalid_request", "What the app names as its compose files can't be such files.")
    return WatchedApp(message.cd_path, Project(last.name, last.directory) if last.name else None, files)


@dataclass(frozen=True, slots=True)
class About:
    """Facts that are constant while the agent runs; `journal` is its journal's folder."""

    compose_version: str
    boot_id: str
    journal: str


def host(state: HostState, about: About) -> pb.Host:
    """Convert the host's facts."""
    return pb.Host(
        engine_reachable=not state.engine_problem,
        engine_problem=state.engine_problem,
        running_containers=state.running_containers,
        uptime=state.uptime,
        boot_id=about.boot_id,
        engine_version=state.engine_version,
        compose_version=about.compose_version,
        agent_version=build(),
        journal=about.journal,
        keeps_deadlines=state.keeps_deadlines,
        disk_problem=clean_sentence(state.disk_problem),
        knows_compose_files=True,
    )


def observation(seen: Observation, boot_id: str) -> pb.AppObservation:
    """Convert an observation of an app."""
    project = seen.project or seen.identity.named
    message = pb.AppObservation(
        cd_path=seen.identity.cd_path,
        real_directory=seen.identity.real_directory,
        project=None if project is None else pb.Project(name=project.name, directory=project.directory),
        containers=[_container(c) for c in seen.containers],
        problem_code=seen.identity.problem_code,
        problem=clean_sentence(seen.identity.problem),
        looked_at=seen.looked_at,
        boot_id=boot_id,
        replicas=dict(islice(seen.identity.replicas.items(), LIMITS.services)),
        deadlines=dict(seen.known.deadlines),
        stops=dict(seen.known.stops),
    )
    return _fitting(message, message.containers)


def end(record: Record, observed: pb.AppObservation | None) -> pb.End:
    """Convert the end of an operation."""
    return pb.End(
        end=_ENDS[record.state],
        exit_code=record.exit_code or 0,
        length=record.length,
        cancelled_by=record.cancelled_by,
        code=record.code,
        reason=record.reason,
        observed=observed,
    )


def cancel_outcome(outcome: CancelOutcome) -> "pb.CancelOutcome.ValueType":
    """Convert the outcome of a cancel."""
    return _CANCELS[outcome]


def watch_items(item: WatchItem, about: About) -> Iterator[pb.WatchResponse]:
    """Convert an item of a watch; the part of a snapshot that doesn't fit into one message follows as changes."""
    match item:
        case Snapshot():
            snapshot, later, size = pb.Snapshot(host=host(item.host, about)), [], 0
            for app in item.apps:
                message = observation(app, about.boot_id)
                size += message.ByteSize()
                if size <= _MESSAGE_BYTES:
                    snapshot.apps.append(message)
                else:
                    later.append(message)
            yield pb.WatchResponse(snapshot=snapshot)
            for message in later:
                yield pb.WatchResponse(app=message)
        case Observation():
            yield pb.WatchResponse(app=observation(item, about.boot_id))
        case HostState():
            yield pb.WatchResponse(host=host(item, about))
        case _:
            yield pb.WatchResponse(heartbeat=pb.Heartbeat())


def projects(found: Mapping[Project, ProjectContainers]) -> pb.ListProjectsResponse:
    """Convert the projects of the host, as many as fit into one message."""
    reply, size = pb.ListProjectsResponse(), 0
    for project, theirs in islice(found.items(), LIMITS.projects):
        message = pb.HostProject(
            project=pb.Project(name=project.name, directory=project.directory),
            containers=[_container(state) for state in theirs.states],
            config_files=theirs.config_files,
            environment_file=theirs.environment_file,
        )
        size += _fitting(message, message.containers).ByteSize()
        if size > LIMITS.message // 2:
            break
        reply.projects.append(message)
    return reply


def _fitting(message: Shown, containers: Iterable[pb.Container]) -> Shown:
    """Drop the ports and cut the names of an item that would be too large: users of this host control both."""
    if message.ByteSize() > _MESSAGE_BYTES:
        for container in containers:
            del container.ports[:]
            container.name, container.service = container.name[: LIMITS.word], container.service[: LIMITS.word]
            container.image = container.image[: LIMITS.word]
    return message


def logs_wanted(message: pb.LogsRequest) -> LogsWanted:
    """Parse which lines are requested."""
    return LogsWanted(message.service, message.tail, message.since, message.follow)


def log_batches(lines: Sequence[LogLine]) -> Iterator[pb.LogsResponse]:
    """Convert lines, in messages of some hundred kilobytes."""
    batch = pb.LogsResponse()
    size = 0
    for line in lines:
        batch.lines.add(time=line.time, container=line.container, service=line.service, text=line.text)
        size += len(line.text)
        if size > _BATCH_CHARACTERS or len(batch.lines) >= _BATCH_LINES:
            yield batch
            batch, size = pb.LogsResponse(), 0
    if batch.lines:
        yield batch


def _container(state: ContainerState) -> pb.Container:
    return pb.Container(
        id=state.id,
        name=state.name,
        service=state.service,
        image=state.image,
        state=state.state,
        health=state.health,
        exit_code=state.exit_code,
        one_off=state.one_off,
        started_at=_timestamp(state.started_at),
        finished_at=_timestamp(state.finished_at),
        ports=state.ports,
        restarts=state.restarts,
        unsettled=state.is_restart_looping,
        restart_policy=state.restart_policy,
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
