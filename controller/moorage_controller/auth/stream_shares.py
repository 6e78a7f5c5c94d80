"""Limits of concurrent streams: per user, per host, and in total.

An event stream costs only a connection, so a team may share a user. An output stream reads from the database. Each log
stream needs a connection to a host. The limits of one user leave room for others.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from enum import Enum
from uuid import UUID

from moorage_controller.errors import TooManyRequestsError


class Kind(Enum):
    """The kind of a stream."""

    EVENTS = "events"
    OUTPUT = "outputs"
    LOGS = "logs"


MOST_OF_USER = {Kind.EVENTS: 300, Kind.OUTPUT: 50, Kind.LOGS: 20}
MOST_OF_HOST = 50
"""Limit of log streams from one host, over all users."""
MOST = 500
_RETRY_SECONDS = 10
CODE = "too_many_streams"


class StreamShares:
    """Counts this controller's open streams."""

    def __init__(self) -> None:
        self._open: Counter[Hashable] = Counter()

    @property
    def open(self) -> int:
        """The current number of streams."""
        return self._open["all"]

    @contextmanager
    def of_user(self, kind: Kind, user_id: UUID) -> Iterator[None]:
        """Hold one of the user's places and one of the total. Raises TooManyRequestsError."""
        most = MOST_OF_USER[kind]
        with (
            self._place((kind, user_id), most, f"You follow {most} {kind.value} already"),
            self._place("all", MOST, f"This controller has {MOST} streams open already"),
        ):
            yield

    @contextmanager
    def of_host(self, server_id: UUID) -> Iterator[None]:
        """Hold one of the host's places for logs. Raises TooManyRequestsError."""
        with self._place(server_id, MOST_OF_HOST, f"{MOST_OF_HOST} logs of this host are read already"):
            yield

    @contextmanager
    def _place(self, key: Hashable, most: int, sentence: str) -> Iterator[None]:
        if self._open[key] >= most:
            raise TooManyRequestsError(f"{sentence}: close one, or try again later.", _RETRY_SECONDS, CODE)
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
