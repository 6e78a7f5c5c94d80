"""Hints from one part to another inside a controller. The truth is in the database: a lost hint costs time, no more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")


class Signal(Generic[T]):
    """Calls its listeners at once, in the order in which they came."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[T], None]] = []

    def connect(self, listener: Callable[[T], None]) -> Callable[[], None]:
        """Add a listener, which must not block; returns what takes it away."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def emit(self, value: T) -> None:
        """Tell all listeners."""
        for listener in tuple(self._listeners):
            listener(value)


@dataclass(frozen=True, slots=True)
class OperationFinished:
    """An operation that ended: its kind and state, and how many seconds it was at work, as far as that is known.

    `late`: of a run that was stopped since its time was over, by how many seconds.
    """

    kind: str
    state: str
    auto_stop: bool
    seconds: float | None
    late: float | None = None


@dataclass(frozen=True, slots=True)
class DurationSample:
    """Something that was tried: what it was, how it went, and how many seconds it took."""

    what: str
    result: str
    seconds: float


class Signals:
    """The hints there are."""

    def __init__(self) -> None:
        self.server_changed: Signal[UUID] = Signal()
        """A server, its enrolment or its set of apps changed: watch it anew."""
        self.deadline_moved: Signal[UUID] = Signal()
        """An app's deadline was set, moved or taken away, or an operation on it ended, or the app is gone."""
        self.host_seen: Signal[UUID] = Signal()
        """All that a server's host has to tell was taken in, once for each watch of it."""
        self.host_back: Signal[UUID] = Signal()
        """A server that was offline answers again."""
        self.engine_lost: Signal[UUID] = Signal()
        """A server's host answers, and its Engine doesn't."""
        self.output_kept: Signal[UUID] = Signal()
        """More of an operation's output is in the database."""
        self.operation_ended: Signal[UUID] = Signal()
        """An operation's end is in the database."""
        self.operation_settled: Signal[OperationFinished] = Signal()
        """The same, told to who counts."""
        self.host_checked: Signal[str] = Signal()
        """A host was asked how it is: `answered`, `unreachable` or `timeout`."""
        self.auto_stop_polled: Signal[None] = Signal()
        """Auto-stop has looked for what is due."""
