"""The one interface to a host: what the services ask, whatever the way there.

A transport knows three kinds of failure, and a caller treats each in its own way: `HostUnreachableError` (nothing was
sent), `ContactLostError` (something may have arrived: not known), `HostRefusedError` (the host's definite no).
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
    """The connection broke after something was sent: what became of it is not known.

    `code` is stable; `SAID_TOO_MUCH` where we ended it, since the host broke a limit of what it may say.
    """

    def __init__(self, sentence: str, code: str = "host_unreachable") -> None:
        super().__init__(clean_sentence(sentence))
        self.code = code


def said_too_much(place: str, error: UntrustedError) -> ContactLostError:
    """Return the end of contact with a host that broke a limit; `place` begins a sentence."""
    sentence = f"{place} broke a limit of what a host may say: {error} Its connection was ended; see what runs there."
    return ContactLostError(sentence, SAID_TOO_MUCH)


class HostRefusedError(Exception):
    """The host said no, and will say no again: `code` is stable, the text a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        self.code = clean_code(code, "host_refused")
        self.sentence = clean_sentence(sentence)
        super().__init__(self.sentence)


@dataclass(frozen=True, slots=True)
class HostApp:
    """An app as a host is told of it: the directory as the user gave it, and the project it was last seen as."""

    cd_path: str
    last_project: Project | None = None
    compose_files: tuple[str, ...] = ()
    """The files that are its own, relative to the directory; empty where Compose looks for them."""


@dataclass(frozen=True, slots=True)
class HostInfo:
    """A host's facts. `uptime` is seconds; `engine_problem` a sentence where the Engine doesn't answer.

    `agent_version` and `journal`, the folder of its journal, are the agent's, empty over SSH; `fallback` says why a
    host that has an agent is reached by SSH, empty where it isn't; `keeps_deadlines` whether its agent stops apps by
    itself.
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
    """False for an agent that would start an app with other files than its own."""
    disk_problem: str = ""
    """One sentence where nothing can be written on the disk with the host's journal, or soon can't."""


@dataclass(frozen=True, slots=True)
class AppObservation:
    """An app's containers at one moment.

    `looked_at` is nanoseconds of the host's boot clock, to be compared only with others of the same `boot_id`: the
    later look is the truth. `problem` says why it couldn't be started as it is; `replicas` how many containers each
    service is to have, empty where that isn't known.
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
    """The numbers of the deadlines that the agent knows for apps here, by the app's id."""
    stops: Mapping[UUID, UUID] = field(default_factory=dict)
    """The operations by which the agent stopped apps here itself, by the app's id; until they are followed."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long an app may go on running, as its agent is told. The highest `number` holds, whichever arrives last.

    Without a run there is nothing to be stopped: `run_id` and `remaining` are None.
    """

    app_id: UUID
    number: int
    run_id: UUID | None = None
    remaining: timedelta | None = None


@dataclass(frozen=True, slots=True)
class HostProject:
    """A Compose project on a host, whether or not an app names it; its directory has its links resolved.

    `config_files` and `environment_file` are those that its containers were started with, empty where that isn't known.
    """

    project: Project
    containers: Sequence[ContainerState]
    config_files: tuple[str, ...] = ()
    environment_file: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """An operation to be run on a host; its id makes sending it twice harmless."""

    operation_id: UUID
    kind: OperationKind
    app: HostApp
    deadline: Deadline | None = None
    """Of a start: what the agent is to know before anything runs."""


@dataclass(frozen=True, slots=True)
class Output:
    """A batch of output; `offset` is that of its first byte."""

    offset: int
    data: bytes


class EndKind(StrEnum):
    """How an operation ended on the host."""

    EXITED = "exited"
    LOST = "lost"
    BURIED = "buried"


@dataclass(frozen=True, slots=True)
class End:
    """The end of an operation. `observed` is None where the Engine didn't answer afterwards."""

    kind: EndKind
    exit_code: int = 0
    length: int = 0
    cancelled_by: str = ""
    code: str = ""
    reason: str = ""
    observed: AppObservation | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first word of a watch: everything."""

    host: HostInfo
    apps: Sequence[AppObservation] = field(default_factory=tuple)


class CancelOutcome(StrEnum):
    """What became of a cancel: `buried` means it had never started there and now never will."""

    SIGNALLED = "signalled"
    ALREADY_ENDED = "already_ended"
    BURIED = "buried"


WatchItem = Snapshot | AppObservation | HostInfo


class HostTransport(Protocol):
    """A way to one host."""

    @property
    def name(self) -> str:
        """`agent` or `ssh`."""

    async def connect(self) -> None:
        """Reach the host within seconds. Raises HostUnreachableError: then nothing was sent."""

    async def info(self) -> HostInfo:
        """Ask the host's facts now. Raises HostUnreachableError."""

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""

    def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end.

        Raises ContactLostError; HostRefusedError `operation_unknown` where the host has never heard of it.
        """

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or see to it that it never starts. Raises ContactLostError, HostRefusedError."""

    def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change. Raises ContactLostError, HostRefusedError, HostUnreachableError.

        It ends without an error only where there is a better way now: watch anew, nothing was lost.
        """

    async def look(self, app: HostApp) -> AppObservation:
        """Look at an app now. Raises HostUnreachableError; HostRefusedError (`engine_unreachable`, or the policy's)."""

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects there are, as far as this way may see them. Raises like `look`."""

    def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of what an app's containers write. Raises ContactLostError, HostUnreachableError.

        And HostRefusedError: `service_not_found`, `too_many_logs`, `engine_unreachable`, or the policy's.
        """

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Tell the agent how long an app may run; it is on the host's disk then. Raises HostUnreachableError.

        And HostRefusedError: `no_dead_man` over SSH, `agent_too_old`, `deadlines_not_kept`.
        """


class HostAddress(Protocol):
    """What of a server says where it is reached; a server's row has it."""

    @property
    def id(self) -> UUID:
        """The server's id."""

    @property
    def api_endpoint(self) -> str | None:
        """The agent's HOST:PORT."""

    @property
    def agent_name(self) -> str | None:
        """The DNS name of the enrolment in force."""

    @property
    def agent_journal(self) -> str | None:
        """The folder of the agent's journal, once the agent was seen."""

    @property
    def address(self) -> str:
        """The host's name or IP address."""

    @property
    def ssh_user(self) -> str | None:
        """The user to log in as; root where there is none."""

    @property
    def ssh_port(self) -> int:
        """The SSH server's TCP port."""

    @property
    def encrypted_credentials(self) -> str | None:
        """Sealed; here it only counts whether there are any."""

    @property
    def host_key(self) -> str | None:
        """The pinned public key."""


class Hosts(Protocol):
    """Finds the way to a server."""

    def transport(self, server: HostAddress) -> HostTransport:
        """Return the transport. Raises HostUnreachableError where the server has none."""

    async def host_key(self, server: HostAddress) -> str:
        """Return the SSH host key that the host shows now, whatever is pinned. Raises HostUnreachableError."""
