"""Last logs: read the last log lines of containers before a stop removes them, to show them afterwards."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from moorage_common.clock import Clock, wait_for
from moorage_common.docker.logs import LogLine, LogsWanted
from sqlalchemy.exc import IntegrityError

from moorage_controller.errors import DatabaseUnavailableError, HostUnreachableError
from moorage_controller.hosts.transport import ContactLostError, HostApp, HostRefusedError, HostTransport
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import last_logs as store
from moorage_controller.store.tables.last_logs import ServiceLog

log = structlog.get_logger(__name__)

_SERVICE_BYTES = 64 * 1024
_APP_BYTES = 1 << 20
_MOST_SERVICES = 64
_LINES = 1000
_LINE_BYTES = 64
"""Overhead per line besides its text."""
_READ_SECONDS = 1.0
"""Maximum delay of a stop."""
_CLOSE_SECONDS = 1.0


@dataclass(slots=True)
class _Tail:
    """The newest lines of a service."""

    lines: deque[LogLine] = field(default_factory=deque)
    size: int = 0

    def add(self, line: LogLine) -> None:
        self.lines.append(line)
        self.size += _size(line)
        self.cut(_SERVICE_BYTES)

    def cut(self, size: int) -> None:
        while self.lines and self.size > size:
            self.size -= _size(self.lines.popleft())


class LogKeeper:
    """Keeps the logs of one stop. Errors are only logged: the stop continues."""

    def __init__(self, database: Database, clock: Clock, app_id: UUID) -> None:
        self._database = database
        self._clock = clock
        self._app_id = app_id
        self._tails: dict[str, _Tail] = {}
        self._newest = ""
        self._reading: asyncio.Task[None] | None = None

    async def begin(self, transport: HostTransport, app: HostApp) -> None:
        """Wait until the existing lines are read, a second at most; during the stop the log is read on."""
        existing_read = asyncio.Event()
        self._reading = asyncio.create_task(self._read(transport, app, existing_read))
        await wait_for(existing_read, _READ_SECONDS, self._clock)

    async def drop(self) -> None:
        """Stop reading."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading}, timeout=_CLOSE_SECONDS)

    async def keep(self) -> None:
        """Store the lines that were read, if any."""
        await self.drop()
        share = min(_SERVICE_BYTES, _APP_BYTES // max(len(self._tails), 1))
        logs = {}
        for service, tail in self._tails.items():
            tail.cut(share)
            logs[service] = json.dumps([[line.time, line.container, line.text] for line in tail.lines])
        if not logs:
            return
        # A deleted app or an unavailable database is reported elsewhere.
        with suppress(IntegrityError, DatabaseUnavailableError):
            async with self._database.write() as connection:
                await store.replace(connection, self._app_id, await self._database.now(connection), logs)

    async def _read(self, transport: HostTransport, app: HostApp, existing_read: asyncio.Event) -> None:
        """Read the existing lines, then follow the log for each container's end."""
        try:
            await self._add_all(transport.logs(app, LogsWanted(tail=_LINES)))
            existing_read.set()
            await self._add_all(transport.logs(app, LogsWanted(tail=-1, since=self._newest, follow=True)))
        except (ContactLostError, HostRefusedError, HostUnreachableError) as error:
            log.info("last_logs_not_read", error=str(error))
        except Exception:
            log.exception("last_logs_failed")
        finally:
            existing_read.set()

    async def _add_all(self, lines: AsyncGenerator[Sequence[LogLine], None]) -> None:
        async with aclosing(lines) as batches:
            async for batch in batches:
                self._add(batch)

    def _add(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            # Remarks of Moorage have no time.
            if line.time and (line.service in self._tails or len(self._tails) < _MOST_SERVICES):
                self._tails.setdefault(line.service, _Tail()).add(line)
                self._newest = max(self._newest, line.time)


def shown(kept: Sequence[ServiceLog], wanted: LogsWanted) -> list[LogLine]:
    """Return the wanted lines in order of time, after a remark; empty if there are none."""
    found: list[LogLine] = []
    for each in kept:
        if wanted.service in {"", each.service}:
            lines = [LogLine(time, container, each.service, text) for time, container, text in json.loads(each.lines)]
            for name in dict.fromkeys(line.container for line in lines):
                own = [line for line in lines if line.container == name]
                found += own[len(own) - min(wanted.tail, len(own)) :] if wanted.tail >= 0 else own
    found = sorted((line for line in found if line.time > wanted.since), key=lambda line: line.time)
    if not found:
        return []
    moment = max(each.stopped_at for each in kept).isoformat(timespec="seconds").replace("+00:00", "Z")
    remark = f"[The app is stopped. Its last lines, up to 64 KiB a service, from before its stop at {moment}:]"
    return [LogLine("", "", "", remark), *found]


def _size(line: LogLine) -> int:
    return len(line.text.encode()) + _LINE_BYTES
