"""The transport interface to a host, common to the agent and to SSH.

A transport raises three kinds of errors. Callers handle each one differently:

- `HostUnreachableError`: nothing was sent.
- `ContactLostError`: something may have arrived; the outcome is unknown.
- `HostRefusedError`: the host definitely refused.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, OperationKind, Project
from moorage_common.untrusted import UntrustedError, clean_code, clean_sentence

SAID_TOO_MUCH = "host_said_too_much"


class ContactLostError(Exception):
    """The connection broke after something was sent; its outcome is unknown.

    `code` is stable. It is `SAID_TOO_MUCH` if the controller ended the connection because the host exceeded a limit.
    """

    def __init__(self, sentence: str, code: str = "host_unreachable") -> None:
        super().__init__(clean_sentence(sentence))
        self.code = code


def said_too_much(place: str, error: UntrustedError) -> ContactLostError:
    """Return the error for a host that exceeded a limit; `place` is the start of its sentence."""
    sentence = f"{place} broke a limit of what a host may say: {error} Its connection was ended; see what runs there."
    return ContactLostError(sentence, SAID_TOO_MUCH)


class HostRefusedError(Exception):
    """The host refused, and would refuse a retry. `code` is stable; the text is a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        self.code = clean_code(code, "host_refused")
        self.sentence = clean_sentence(sentence)
        super().__init__(self.sentence)


@dataclass(frozen=True, slots=True)
class HostApp:
    """An app as it is sent to a host: the directory as the user gave it, and its last observed project."""

    cd_path: str
    last_project: Project | None = None
    compose_files: tuple[str, ...] = ()
    """The app's explicit compose files, relative to the directory; empty if Compose finds them by default."""


@dataclass(frozen=True, slots=True)
class HostInfo:
    """A host's facts. `uptime` is in seconds; `engine_problem` is a sentence if the Engine doesn't answer.

    `agent_version` and `journal` (the folder of the agent's journal) are empty over SSH. `fallback` is the reason why a
    host with an agent is reached over SSH, otherwise empty. `keeps_deadlines`: its agent stops apps by itself.
    """

    engine_reachable: bool
    engine_problem: str
    running_containers: int
    uptime: int
    agent_version: str
    engine_version: str
    compose_version: str
    journal: str = ""
    fallback: str = ""
    keeps_deadlines: bool = False
    knows_compose_files: bool = True
    """False for an old agent that ignores an app's own compose files."""
    disk_problem: str = ""
    """One sentence if the disk with the host's journal is not writable or nearly full, otherwise empty."""


@dataclass(frozen=True, slots=True)
class AppObservation:
    """An app's containers at one moment.

    `looked_at` is in nanoseconds of the host's boot clock and comparable only within the same `boot_id`; the later
    observation wins. `problem` is the reason why the app couldn't be started as it is. `replicas` maps each service to
    its expected number of containers; it is empty if that is unknown.
    """

    cd_path: str
    project: Project | None
    containers: Sequence[ContainerState]
    looked_at: int = 0
    boot_id: str = ""
    problem_code: str = ""
    problem: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)
    deadlines: Mapping[UUID, int] = field(default_factory=dict)
    """The numbers of the deadlines that the agent keeps for apps in this directory, by app id."""
    stops: Mapping[UUID, UUID] = field(default_factory=dict)
    """The agent's own stop operations for apps in this directory, by app id, until they are followed."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The remaining run time of an app, as sent to its agent. The highest `number` wins, in any order of arrival.

    `run_id` and `remaining` are None if there is no run to stop.
    """

    app_id: UUID
    number: int
    run_id: UUID | None = None
    remaining: timedelta | None = None


@dataclass(frozen=True, slots=True)
class HostProject:
    """A Compose project on a host, with or without an app for it; symbolic links in its directory are resolved.

    `config_files` and `environment_file` are those its containers were started with; empty if unknown.
    """

    project: Project
    containers: Sequence[ContainerState]
    config_files: tuple[str, ...] = ()
    environment_file: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """An operation for a host. It is idempotent by its id, so it can be sent twice."""

    operation_id: UUID
    kind: OperationKind
    app: HostApp
    deadline: Deadline | None = None
    """For a start: the deadline, which the agent stores before it runs anything."""


@dataclass(frozen=True, slots=True)
class Output:
    """A batch of output; `offset` is the position of its first byte, in bytes."""

    offset: int
    data: bytes


class EndKind(StrEnum):
    """How an operation ended on the host."""

    EXITED = "exited"
    LOST = "lost"
    BURIED = "buried"


@dataclass(frozen=True, slots=True)
class End:
    """The end of an operation. `observed` is None if the Engine didn't answer afterwards."""

    kind: EndKind
    exit_code: int = 0
    length: int = 0
    cancelled_by: str = ""
    code: str = ""
    reason: str = ""
    observed: AppObservation | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first item of a watch: the host and all watched apps."""

    host: HostInfo
    apps: Sequence[AppObservation] = field(default_factory=tuple)


class CancelOutcome(StrEnum):
    """The outcome of a cancel. `buried`: the operation had never started on the host and now never will."""

    SIGNALLED = "signalled"
    ALREADY_ENDED = "already_ended"
    BURIED = "buried"


WatchItem = Snapshot | AppObservation | HostInfo


class HostTransport(Protocol):
    """A transport to one host."""

    @property
    def name(self) -> str:
        """`agent` or `ssh`."""

    async def connect(self) -> None:
        """Connect to the host, within seconds. Raises HostUnreachableError; then nothing was sent."""

    async def info(self) -> HostInfo:
        """Fetch the host's facts. Raises HostUnreachableError."""

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""

    def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end.

        Raises ContactLostError; HostRefusedError `operation_unknown` for an operation the host doesn't know.
        """

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or prevent its start. Raises ContactLostError, HostRefusedError."""

    def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change. Raises ContactLostError, HostRefusedError, HostUnreachableError.

        It ends without an error only if a better transport is available: watch again; no change was lost.
        """

    async def observe(self, app: HostApp) -> AppObservation:
        """Observe an app now. Raises HostUnreachableError; HostRefusedError (`engine_unreachable` or a policy code)."""

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects that are visible to this transport. Raises the same errors as `observe`."""

    def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of log lines of an app's containers.

        Raises ContactLostError, HostUnreachableError; HostRefusedError (`service_not_found`, `too_many_logs`,
        `engine_unreachable` or a policy code).
        """

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Send an app's deadline to the agent and return once it is on the host's disk.

        Raises HostUnreachableError; HostRefusedError (`no_dead_man` over SSH, `agent_too_old`, `deadlines_not_kept`).
        """


class HostAddress(Protocol):
    """The part of a server that its transports need; a row of the servers table satisfies it."""

    @property
    def id(self) -> UUID:
        """The server's id."""

    @property
    def api_endpoint(self) -> str | None:
        """The agent's HOST:PORT."""

    @property
    def agent_name(self) -> str | None:
        """The DNS name of the current enrolment."""

    @property
    def agent_journal(self) -> str | None:
        """The folder of the agent's journal; None until the agent has answered once."""

    @property
    def address(self) -> str:
        """The host's name or IP address."""

    @property
    def ssh_user(self) -> str | None:
        """The SSH user; None means root."""

    @property
    def ssh_port(self) -> int:
        """The SSH server's TCP port."""

    @property
    def encrypted_credentials(self) -> str | None:
        """The sealed SSH credentials; only their presence matters here."""

    @property
    def host_key(self) -> str | None:
        """The pinned public key."""


class Hosts(Protocol):
    """Chooses the transport to a server."""

    def transport(self, server: HostAddress) -> HostTransport:
        """Return the transport. Raises HostUnreachableError if the server has none."""

    async def host_key(self, server: HostAddress) -> str:
        """Return the SSH host key that the host presents now, regardless of pinning. Raises HostUnreachableError."""
