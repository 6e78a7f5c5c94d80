"""In-process notifications between the parts of a controller.

The database is authoritative; a lost notification only costs time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")


class Signal(Generic[T]):
    """Calls its listeners synchronously, in the order of their registration."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[T], None]] = []

    def connect(self, listener: Callable[[T], None]) -> Callable[[], None]:
        """Add a listener, which must not block; return a function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def emit(self, value: T) -> None:
        """Call all listeners."""
        for listener in tuple(self._listeners):
            listener(value)


@dataclass(frozen=True, slots=True)
class OperationFinished:
    """An operation that ended: its kind and state, and its duration in seconds, None if unknown.

    `late`: for an auto-stop, the delay after the run's deadline in seconds.
    """

    kind: str
    state: str
    auto_stop: bool
    seconds: float | None
    late: float | None = None


@dataclass(frozen=True, slots=True)
class DurationSample:
    """The duration of an action: its name, its result, and its seconds."""

    what: str
    result: str
    seconds: float


class Signals:
    """All signals of a controller."""

    def __init__(self) -> None:
        self.server_changed: Signal[UUID] = Signal()
        """A server, its enrolment or its set of apps changed: watch it again."""
        self.deadline_moved: Signal[UUID] = Signal()
        """An app's deadline was set, moved or removed, or an operation on it ended, or the app was deleted."""
        self.host_seen: Signal[UUID] = Signal()
        """The whole initial state of a server's host was stored, once per watch."""
        self.host_back: Signal[UUID] = Signal()
        """A server that was offline answers again."""
        self.engine_lost: Signal[UUID] = Signal()
        """A server's host answers, but its Engine doesn't."""
        self.output_kept: Signal[UUID] = Signal()
        """More of an operation's output is in the database."""
        self.operation_ended: Signal[UUID] = Signal()
        """An operation's end is in the database."""
        self.operation_settled: Signal[OperationFinished] = Signal()
        """An operation ended; for metrics."""
        self.host_checked: Signal[str] = Signal()
        """A host was checked: `answered`, `unreachable` or `timeout`."""
        self.auto_stop_polled: Signal[None] = Signal()
        """Auto-stop has polled for due runs."""
