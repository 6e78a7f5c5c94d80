"""Hints from one part to another inside a controller. The truth is in the database: a lost hint costs time, no more."""

from collections.abc import Callable
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")


class Signal(Generic[T]):
    """Calls its listeners at once, in the order in which they came."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[T], None]] = []

    def connect(self, listener: Callable[[T], None]) -> None:
        """Add a listener; it must not block."""
        self._listeners.append(listener)

    def emit(self, value: T) -> None:
        """Tell all listeners."""
        for listener in self._listeners:
            listener(value)


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
        self.output_kept: Signal[UUID] = Signal()
        """More of an operation's output is in the database."""
        self.operation_ended: Signal[UUID] = Signal()
        """An operation's end is in the database."""
