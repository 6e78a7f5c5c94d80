"""Parts of a fake host: apps, plans of commands, and the runs in its journal."""

import asyncio
from dataclasses import dataclass, field

from moorage_common.docker.logs import LogLine
from moorage_common.docker.states import ContainerState
from moorage_controller.hosts.transport import End, Order


class Change:
    """Wakes all waiters on every notification."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake all waiters."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next notification."""
        await self._event.wait()


@dataclass
class FakeApp:
    """An app's directory on a fake host: the services of its compose file, and its containers."""

    services: tuple[str, ...] = ("web", "db")
    containers: list[ContainerState] = field(default_factory=list)
    says: tuple[str, ...] = ()
    """What each service's container writes when it is started."""
    logs: list[LogLine] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Behaviour of commands of a kind: output, exit code, and the services with running containers afterwards."""

    exit_code: int = 0
    output: bytes = b""
    leaves: tuple[str, ...] | None = None


@dataclass
class FakeRun:
    """An operation in a fake host's journal. `starts` counts the commands that ran: at most one."""

    order: Order | None
    output: bytearray = field(default_factory=bytearray)
    end: End | None = None
    cancelled_by: str = ""
    signals: list[str] = field(default_factory=list)
    starts: int = 0
    attached: int = 0
    task: asyncio.Task[None] | None = None
    terminated: bool = False


@dataclass
class Refusal:
    """A definite refusal of starts, which the journal records as a tombstone where it can."""

    code: str
    sentence: str

    @property
    def buries(self) -> bool:
        """Whether the journal could write a tombstone."""
        return not self.code.startswith(("journal_", "agent_"))
