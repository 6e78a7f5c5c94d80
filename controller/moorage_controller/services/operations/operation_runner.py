"""Operation runner: send one operation once, then follow it across lost connections until the host reports its end."""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import structlog
from moorage_common.clock import Clock, jittered, within
from moorage_common.compose.output import crash, error_sentence
from moorage_common.docker.states import OperationKind
from moorage_common.untrusted import clean_sentence

from moorage_controller.auth.roles import DEAD_MAN
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import (
    SAID_TOO_MUCH,
    AppObservation,
    CancelOutcome,
    ContactLostError,
    End,
    EndKind,
    HostApp,
    HostRefusedError,
    Hosts,
    HostTransport,
    Order,
    Output,
)
from moorage_controller.services.operations import start_ends
from moorage_controller.services.operations.last_logs import LogKeeper
from moorage_controller.services.operations.output_reader import TAIL_BYTES
from moorage_controller.services.operations.output_writer import OutputWriter
from moorage_controller.services.runs.deadline_sync import provisional_deadline
from moorage_controller.services.runs.transitions import Outcome, Rules, host_app
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.write_priority import Priority, priority
from moorage_controller.store.tables import apps as app_store
from moorage_controller.store.tables import operations as store
from moorage_controller.store.tables import servers as server_store
from moorage_controller.store.tables.operations import Operation
from moorage_controller.store.tables.servers import Server

log = structlog.get_logger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.5, 15.0
_RETRIES = {SAID_TOO_MUCH: _LAST_RETRY}
"""Minimum retry delay in seconds by error code."""
DEADLINE = "the operation's time limit"
SILENCE = "the operation's no-progress limit"
"""Canceller recorded in the host's journal when a limit, not a user, cancelled the operation."""
_CRASH_BYTES = 1 << 20
"""Bytes of the output's end to search for a crash: a Go panic trace may be long."""
_CRASHED = (
    "Compose itself crashed ({}), so that what it has done is not known: look at the app's status and at this "
    "operation's output, then start or stop the app again. If it crashes again, run `docker compose config` in the "
    "app's directory, and take out of its compose file what was changed or added last."
)
_ENGINE_LOST = (
    "The Docker Engine on the host went away or was restarted in the middle of it: see there why, and start again once "
    "the server is online."
)
_BY_ENGINES_END = re.compile(
    r"exited \((143|137)\)|Docker daemon|error during connect|connection reset|broken pipe|\bEOF\b", re.IGNORECASE
)
"""Compose messages caused by an Engine that stops: it stops all containers, or no longer answers."""
_ENGINE_SECONDS, _SOON = 15.0, 3.0
"""Seconds to wait for the loss of an Engine: on shutdown it stops containers before it closes its API."""
_TOO_LONG = {
    DEADLINE: "The operation took longer than its time limit and was stopped.",
    SILENCE: "The operation made no progress for longer than its limit and was stopped.",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an operation: total time, maximum time without output while connected, and those of its run."""

    total: timedelta
    no_progress: timedelta
    runs: Rules = field(default_factory=Rules)


class OperationRunner:
    """Sends one operation to its host and returns its outcome."""

    def __init__(
        self, database: Database, hosts: Hosts, signals: Signals, clock: Clock, operation: Operation, limits: Limits
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._signals = signals
        self._clock = clock
        self._operation = operation
        self._limits = limits
        assert operation.app_id is not None
        self._last_logs = LogKeeper(database, clock, operation.app_id)
        self._transcript = OutputWriter(database, signals, clock, operation.id)
        self._host_app: HostApp | None = None
        self._offset = 0
        self._refusal: HostRefusedError | None = None
        self._connected: HostTransport | None = None
        self._server: Server | None = None
        """The server as just read; used for the first connection."""
        self._noted = operation.transport
        self._waiting = operation.error
        """The reason for waiting for the host, as shown in the operation; None while not waiting."""
        self._limit_at = 0.0
        self._heard_at: float | None = None
        """Monotonic time of the last output or connection; None while not connected."""
        self._engine_lost = asyncio.Event()

    async def run(self, *, recovered: bool) -> Outcome:
        """Run the operation and return its outcome. `recovered`: a controller that died may have sent it already."""
        order = await self._prepare(recovered=recovered)
        if not recovered:
            try:
                self._connected = await self._connect()
            except HostUnreachableError as error:
                return Outcome("failed", ran=False, error_code=error.code, error=error.sentence)
        limit = asyncio.create_task(self._enforce_limits())
        stop_listening = self._signals.engine_lost.connect(self._note_engine)
        try:
            if self._connected is not None and order.kind is OperationKind.DOWN:
                await self._last_logs.begin(self._connected, order.app)
            return await self._deliver(order, send=not recovered or self._may_still_start(), sent=recovered)
        finally:
            await self._last_logs.drop()
            stop_listening()
            limit.cancel()
            with suppress(asyncio.CancelledError):
                await limit
            await self._transcript.drop()

    async def _deliver(self, order: Order, *, send: bool, sent: bool) -> Outcome:
        """Send and follow, with retries: a lost connection is not an end. `sent`: the host may have it already."""
        retry = _FIRST_RETRY
        while True:
            # Only a refusal of the first send proves that nothing began.
            proves = send and not sent
            try:
                transport = await self._connect()
                if send:
                    sent = True
                    await transport.start(order)
                    proves = False
                await self._show_waiting(None)
                if priority.get() is Priority.DEADLINE:
                    # Sent in time: other due stops take precedence from here on.
                    priority.set(Priority.BACKGROUND)
                    await self._record_transport(transport)
                self._heard_at = self._clock.monotonic()
                async for item in transport.follow(order.operation_id, self._offset):
                    if isinstance(item, End):
                        return await self._outcome(item)
                    await self._take(item)
                    retry = _FIRST_RETRY
                    self._heard_at = self._clock.monotonic()
            except HostRefusedError as error:
                if error.code == "operation_unknown":
                    await self._forgotten(transport, send_again=send and order.kind is OperationKind.DOWN)
                elif proves and error.code != "agent_fault":
                    return Outcome("failed", ran=False, error_code=error.code, error=error.sentence)
                else:
                    # It may have begun before: from here on only follow.
                    log.warning("host_refused", code=error.code, error=error.sentence)
                    self._refusal, send = error, False
                    await self._show_waiting(error.sentence)
            except (ContactLostError, HostUnreachableError) as error:
                log.warning("host_contact_lost", error=str(error), code=error.code)
                retry = max(retry, _RETRIES.get(error.code, 0.0))
                await self._show_waiting(str(error))
            self._heard_at = None
            await self._clock.sleep(jittered(retry))
            retry = min(retry * 2, _LAST_RETRY)

    async def _take(self, item: Output) -> None:
        if item.offset != self._offset:
            raise ContactLostError("The host sent output from another place than was asked for.")
        await self._transcript.add(item.data)
        self._offset += len(item.data)

    async def _show_waiting(self, why: str | None) -> None:
        """Store why the operation waits for its host; the operation's end overwrites it."""
        if why is None and self._refusal is not None:
            return  # the host answers, but refuses the follow request
        sentence = None if why is None else clean_sentence(f"Waiting for the host: {why}")
        if sentence == self._waiting:
            return
        async with self._database.write() as connection:
            await store.change_in_flight(connection, self._operation.id, {"error": sentence})
        self._waiting = sentence

    def _may_still_start(self) -> bool:
        """Return whether to send an operation that may never have been sent: a start only within its limit.

        A stop begun by an agent itself is never sent: if its host has no record of it, it is over.
        """
        if self._operation.actor == DEAD_MAN.name and self._operation.auto_stop:
            return False
        down = self._operation.kind == OperationKind.DOWN
        return down or self._clock.monotonic() < self._limit_at

    async def _forgotten(self, transport: HostTransport, *, send_again: bool) -> None:
        """Cancel an operation unknown to the host, so that it can never run there; following it then reports that.

        A stop is sent again instead: a repeated stop is harmless, and it has to happen.
        """
        if send_again:
            return
        with suppress(ContactLostError, HostRefusedError):
            outcome = await transport.cancel(self._operation.id, DEADLINE)
            log.info("operation_buried", outcome=outcome.value, buried=outcome is CancelOutcome.BURIED)

    async def _enforce_limits(self) -> None:
        """Cancel a start on its host at its time limit, or after too long without output; a stop is never cancelled."""
        if self._operation.kind == OperationKind.DOWN:
            return
        while (left := self._limit_at - self._clock.monotonic()) > 0 and not self._is_silent():
            await self._clock.sleep(min(left, self._silence_left()))
        by = SILENCE if left > 0 else DEADLINE
        while True:
            with suppress(ContactLostError, HostRefusedError, HostUnreachableError):
                await (await self._transport()).cancel(self._operation.id, by)
                return
            await self._clock.sleep(_LAST_RETRY)

    def _is_silent(self) -> bool:
        return self._heard_at is not None and self._silence_left() <= 0

    def _silence_left(self) -> float:
        """Return the seconds until the no-progress limit can be reached."""
        most = self._limits.no_progress.total_seconds()
        return most if self._heard_at is None else self._heard_at + most - self._clock.monotonic()

    async def _connect(self) -> HostTransport:
        """Return a transport on which the host has just answered. Raises HostUnreachableError.

        The transport is recorded; for a due stop only after it is sent, since each write before delays it.
        """
        found, self._connected = self._connected, None
        if found is not None:
            return found
        transport = await self._transport()
        await transport.connect()
        if priority.get() is not Priority.DEADLINE:
            await self._record_transport(transport)
        return transport

    async def _record_transport(self, transport: HostTransport) -> None:
        if transport.name != self._noted:
            await self._mark_running(transport.name)
            self._noted = transport.name

    async def _transport(self) -> HostTransport:
        # Read again each time: the agent may have been enrolled again in the meantime.
        assert self._operation.server_id is not None
        server, self._server = self._server, None
        if server is not None:
            return self._hosts.transport(server)
        async with self._database.read() as connection:
            server = await server_store.get(connection, self._operation.server_id)
        assert server is not None
        return self._hosts.transport(server)

    async def _prepare(self, *, recovered: bool) -> Order:
        app_id: UUID | None = self._operation.app_id
        assert app_id is not None
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            app = await app_store.get(connection, app_id)
            assert app is not None
            self._server = await server_store.get(connection, app.server_id)
        if recovered:
            self._offset = await self._transcript.open()
        # The deadline is in database time, which may differ from the clock of this machine.
        self._limit_at = self._clock.monotonic() + (self._operation.deadline_at - now).total_seconds()
        kind = OperationKind(self._operation.kind)
        until = None if kind is OperationKind.DOWN else provisional_deadline(app, self._operation, now)
        self._host_app = host_app(app)
        return Order(self._operation.id, kind, self._host_app, until)

    async def _mark_running(self, transport: str) -> None:
        async with self._database.write() as connection:
            now = await self._database.now(connection)
            values: dict[str, object] = {"state": "running", "transport": transport}
            if self._noted is None:
                values["started_at"] = now
            await store.change_in_flight(connection, self._operation.id, values)

    async def _outcome(self, end: End) -> Outcome:
        await self._transcript.close()
        await self._last_logs.keep()
        if end.kind is EndKind.LOST:
            return Outcome(
                "interrupted",
                error_code="operation_lost",
                error="The host lost this run (a power cut, or all its processes were killed): what it had done by "
                "then is not known. Look at the app, then start or stop it again.",
                observed=end.observed,
            )
        if end.kind is EndKind.BURIED:
            state, code, sentence = self._describe_tombstone(end)
            return Outcome(state, ran=False, error_code=code, error=sentence, observed=end.observed)
        output = (await self._transcript.tail(_CRASH_BYTES)).decode(errors="replace")
        crashed = None if end.cancelled_by else crash(output, end.exit_code)
        if crashed is not None:
            sentence = clean_sentence(_CRASHED.format(crashed))
            return Outcome(
                "failed", exit_code=end.exit_code, error_code="compose_crashed", error=sentence, observed=end.observed
            )
        if end.exit_code == 0:
            return await self._success(end)
        state, code, sentence = await self._failure(end, output[-TAIL_BYTES:])
        if sentence == start_ends.NO_SERVICE and end.observed is not None and not end.observed.containers:
            # Compose reports this as a failure, but there is simply nothing to start.
            return Outcome("succeeded", exit_code=end.exit_code, observed=end.observed)
        return Outcome(state, exit_code=end.exit_code, error_code=code, error=sentence, observed=end.observed)

    async def _success(self, end: End) -> Outcome:
        """Return a success, or a failure if the started containers have already failed: Compose doesn't check that."""
        ended = [] if self._operation.kind == OperationKind.DOWN else start_ends.exited_early(end.observed)
        if not ended:
            return Outcome("succeeded", exit_code=0, observed=end.observed)
        assert self._host_app is not None
        sentence = await start_ends.early_exit_sentence(await self._transport(), self._host_app, ended, self._clock)
        return Outcome("failed", exit_code=0, error_code="exited_early", error=sentence, observed=end.observed)

    def _describe_tombstone(self, end: End) -> tuple[str, str, str]:
        if end.cancelled_by in _TOO_LONG:
            if self._refusal is not None:
                return "failed", self._refusal.code, self._refusal.sentence
            return "failed", "deadline_exceeded", "The operation's time limit was over before it reached the host."
        state = "cancelled" if end.code == "cancelled" else "failed"
        return state, end.code, end.reason or "It was cancelled before it began."

    async def _failure(self, end: End, output: str) -> tuple[str, str, str]:
        if end.cancelled_by in _TOO_LONG:
            return "failed", "deadline_exceeded", _TOO_LONG[end.cancelled_by]
        if end.cancelled_by:
            return "cancelled", "operation_cancelled", f"The operation was cancelled by {end.cancelled_by}."
        said = error_sentence(output) or f"Compose ended with exit code {end.exit_code} and said nothing."
        port = start_ends.taken_port(said)
        taken = (
            None if port is None or end.observed is None else await self._describe_port_owner(port, said, end.observed)
        )
        if taken is not None:
            return "failed", "port_taken", taken
        if await self._lost_engine(end, said):
            return "failed", "engine_lost", clean_sentence(f"{_ENGINE_LOST} Compose said: {said}")
        return "failed", "compose_failed", clean_sentence(said)

    async def _describe_port_owner(self, port: int, said: str, observed: AppObservation) -> str | None:
        """Return a sentence on the owner of a port that a start failed on; None if the host doesn't answer."""
        assert self._operation.app_id is not None
        assert self._operation.server_id is not None
        try:
            transport = await self._transport()
            projects = await within(start_ends.DIAGNOSIS_SECONDS, transport.projects(), self._clock)
        except start_ends.NO_ANSWER:
            return None
        async with self._database.read() as connection:
            apps = await app_store.on_server(connection, self._operation.server_id)
        taken = start_ends.TakenPort(port, said, self._operation.app_id, observed)
        return taken.sentence(projects, apps)

    def _note_engine(self, server_id: UUID) -> None:
        if server_id == self._operation.server_id:
            self._engine_lost.set()

    async def _lost_engine(self, end: End, said: str) -> bool:
        """Return whether it failed because the Engine went away; waits for the loss if the output suggests one."""
        if not _BY_ENGINES_END.search(said):
            return False
        if end.observed is None:
            return True
        # Exit code 143 means SIGTERM, so a shutdown is likely; anything else may be the app's own failure.
        seconds = _ENGINE_SECONDS if "(143)" in said else _SOON
        with suppress(TimeoutError):
            await within(seconds, self._engine_lost.wait(), self._clock)
        return self._engine_lost.is_set()
