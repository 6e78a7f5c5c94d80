"""Containers with oversized output or metadata on an honest host: messages stay within their limits."""

from moorage_agent.docker.watch import HostState, Observation, Snapshot
from moorage_agent.rpc import convert
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import ProjectContainers, clean_state
from moorage_common.docker.states import ContainerState, Project
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.untrusted import LIMITS
from moorage_controller.hosts import messages, wire

ABOUT = convert.About("2", "boot", "/var/lib/moorage-agent")
_LONG = "é" * 5_000
_PORTS = [f"{n}:{_LONG}" for n in range(1000)]
HOST = HostState(engine_problem="", running_containers=1, uptime=1, engine_version="28")


def loud(number: int) -> ContainerState:
    """Return a container whose texts all have the Engine's maximum length, or more."""
    return clean_state(
        ContainerState(
            id=f"{number:064x}",
            name=_LONG,
            service=_LONG,
            image=_LONG,
            state="running",
            ports=_PORTS,
        )
    )


def app(path: str, containers: int) -> Observation:
    """Return an app with so many of these containers."""
    problem = "A compose file says " + "é" * 1_000_000
    identity = AppIdentity(path, path, Project("shop", path), None, "compose_file_invalid", problem)
    return Observation(identity, [loud(n) for n in range(containers)], 1)


def test_app_with_many_verbose_containers_fits_into_message() -> None:
    seen = app("/srv/app", LIMITS.containers)
    (message,) = convert.watch_items(seen, ABOUT)
    raw = message.SerializeToString()
    read = messages.watch_item(wire.read(pb.WatchResponse, raw), {"/srv/app"})
    assert read is not None
    assert len(read.containers) == LIMITS.containers  # type: ignore[union-attr]  # it is an observation


def test_oversized_snapshot_continues_as_changes() -> None:
    paths = [f"/srv/{n}" for n in range(60)]
    everything = Snapshot(HOST, [app(path, 10) for path in paths])
    told = list(convert.watch_items(everything, ABOUT))
    assert len(told) > 1
    assert all(message.ByteSize() < LIMITS.message for message in told)
    named = [seen.cd_path for seen in told[0].snapshot.apps] + [message.app.cd_path for message in told[1:]]
    assert named == paths


def test_too_many_projects_are_truncated_to_one_message() -> None:
    found = {Project(f"p{n}", f"/srv/{n}"): ProjectContainers([loud(m) for m in range(5)]) for n in range(300)}
    reply = convert.projects(found)
    assert reply.ByteSize() < LIMITS.message
    assert len(messages.projects(wire.read(pb.ListProjectsResponse, reply.SerializeToString()))) > 30
