"""The agent transport: gRPC with mutual TLS."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NoReturn, TypeVar
from uuid import UUID

import grpc
import grpc.aio
from google.protobuf.message import Message
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import OperationKind
from moorage_common.logging import REQUEST_ID_KEY, request_id
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.untrusted import KIB, LIMITS, ByteBudget, UntrustedError

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts import messages, wire
from moorage_controller.hosts.grpc_failures import Failure, failure_sentence, moorage_code
from moorage_controller.hosts.pools import AgentChannel
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    HostApp,
    HostInfo,
    HostProject,
    HostRefusedError,
    Order,
    Output,
    WatchItem,
    said_too_much,
)

_CONNECT_SECONDS = 5.0
_CALL_SECONDS = 30.0
_REQUEST_SECONDS = 10.0
_HEARTBEAT_SECONDS = 35.0
"""A watch counts as lost after three missed heartbeats of ten seconds, plus a margin."""

_SMALL = 64 * KIB
"""Size limit of a reply without lists, in bytes."""
_FAILURES = (grpc.aio.AioRpcError, UntrustedError)

M = TypeVar("M", bound=Message)


class AgentTransport:
    """HostTransport over one host's agent."""

    name = "agent"

    def __init__(self, channel: AgentChannel, endpoint: str) -> None:
        self._pace = channel.pace
        self._endpoint = endpoint
        self._stub = channel.stub

    async def connect(self) -> None:
        """Call GetInfo: the cheapest read-only call that authenticates both ends."""
        await self.info()

    async def info(self) -> HostInfo:
        """Fetch the host's facts. Raises HostUnreachableError after five seconds at most."""
        try:
            raw = await self._stub.GetInfo(pb.GetInfoRequest(), timeout=_CONNECT_SECONDS)
            return messages.host_info(wire.read(pb.GetInfoResponse, raw, _SMALL).host)
        except _FAILURES as error:
            raise self._unreachable(error) from None

    async def prepare_renewal(self) -> bytes:
        """Make the host create a new key and return its signing request (PEM).

        Raises ContactLostError, HostRefusedError.
        """
        try:
            raw = await self._stub.PrepareRenewal(pb.PrepareRenewalRequest(), timeout=_CALL_SECONDS)
            return wire.read(pb.PrepareRenewalResponse, raw, _SMALL).signing_request
        except _FAILURES as error:
            self._raise(error)

    async def install_certificate(self, certificate: bytes) -> None:
        """Send the host the certificate (PEM) for that key. Raises ContactLostError, HostRefusedError."""
        request = pb.InstallCertificateRequest(certificate=certificate)
        try:
            await self._stub.InstallCertificate(request, timeout=_CALL_SECONDS)
        except _FAILURES as error:
            self._raise(error)

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        await self._check_knows_files(order)
        try:
            request = messages.start_request(order)
            await self._stub.StartOperation(request, timeout=_CALL_SECONDS, metadata=_asked())
        except _FAILURES as error:
            self._raise(error)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end."""
        call = self._stub.FollowOperation(pb.FollowOperationRequest(operation_id=str(operation_id), after=after))
        try:
            async for raw in call:
                reply = await self._read(pb.FollowOperationResponse, raw)
                if reply.WhichOneof("content") == "end":
                    yield messages.end(reply.end)
                    return
                if reply.output.data:
                    yield messages.output(reply.output)
        except _FAILURES as error:
            self._raise(error)
        finally:
            call.cancel()
        raise ContactLostError(f"The agent at {self._endpoint} ended the stream before the operation's end.")

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or bury it."""
        request = pb.CancelOperationRequest(operation_id=str(operation_id), by=by)
        try:
            raw = await self._stub.CancelOperation(request, timeout=_CALL_SECONDS, metadata=_asked())
            return messages.cancel_outcome(wire.read(pb.CancelOperationResponse, raw, _SMALL).outcome)
        except _FAILURES as error:
            self._raise(error)

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change; heartbeats only keep it alive."""
        call = self._stub.Watch(pb.WatchRequest(apps=[messages.app(a) for a in apps]))
        asked = {app.cd_path for app in apps}
        try:
            while True:
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    raw = await call.read()
                if raw is grpc.aio.EOF:
                    raise ContactLostError(f"The agent at {self._endpoint} ended the watch.")
                # Each change costs database work. The agent coalesces changes that are not read yet.
                item = messages.watch_item(await self._read(pb.WatchResponse, raw, LIMITS.change_cost), asked)
                if item is not None:
                    yield item
        except TimeoutError:
            raise ContactLostError(f"The agent at {self._endpoint} has not been heard of for a while.") from None
        except _FAILURES as error:
            self._raise(error)
        finally:
            call.cancel()

    async def observe(self, app: HostApp) -> AppObservation:
        """Observe an app now. Raises HostUnreachableError, HostRefusedError."""
        request = pb.GetAppRequest(app=messages.app(app))
        try:
            raw = await self._stub.GetApp(request, timeout=_REQUEST_SECONDS)
            return messages.observation((await self._read(pb.GetAppResponse, raw)).app)
        except _FAILURES as error:
            raise self._refused(error) or self._unreachable(error) from None

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects that the host's policy allows. Raises HostUnreachableError, HostRefusedError."""
        try:
            raw = await self._stub.ListProjects(pb.ListProjectsRequest(), timeout=_CALL_SECONDS)
            return messages.projects(await self._read(pb.ListProjectsResponse, raw))
        except _FAILURES as error:
            raise self._refused(error) or self._unreachable(error) from None

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of log lines of an app's containers."""
        call = self._stub.Logs(messages.logs_request(app, wanted))
        budget = None if wanted.follow else ByteBudget("A log", LIMITS.log)
        try:
            async for raw in call:
                if budget is not None and isinstance(raw, bytes):
                    budget.take(len(raw))
                lines = messages.log_lines(await self._read(pb.LogsResponse, raw))
                await self._pace.take(LIMITS.line_cost * len(lines))
                yield lines
        except _FAILURES as error:
            self._raise(error)
        finally:
            call.cancel()

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Send an app's deadline to the agent. Raises HostUnreachableError, HostRefusedError."""
        request = pb.SetDeadlineRequest(app=messages.app(app), deadline=messages.deadline(deadline))
        try:
            await self._stub.SetDeadline(request, timeout=_CONNECT_SECONDS)
        except _FAILURES as error:
            raise self._refused(error) or self._unreachable(error) from None

    async def _check_knows_files(self, order: Order) -> None:
        """Raise HostRefusedError for an old agent that would ignore the app's own compose files."""
        if not order.app.compose_files or order.kind is OperationKind.DOWN:
            return
        try:
            info = await self.info()
        except HostUnreachableError as error:
            raise ContactLostError(error.sentence, error.code) from None
        if not info.knows_compose_files:
            sentence = f"The agent at {self._endpoint} doesn't know an app's composeFiles yet: upgrade it."
            raise HostRefusedError("agent_too_old", sentence)

    async def _read(self, kind: type[M], raw: object, cost: int = 0) -> M:
        """Parse a message, rate-limited per host; `cost` is added to its size in bytes. Raises UntrustedError."""
        await self._pace.take(cost + (len(raw) if isinstance(raw, bytes) else 0))
        return wire.read(kind, raw)

    def _unreachable(self, error: Failure) -> HostUnreachableError:
        if self._is_too_much(error):
            lost = self._too_much(error)
            return HostUnreachableError(str(lost), lost.code)
        return HostUnreachableError(f"The agent at {self._endpoint} can't be reached: {failure_sentence(error)}")

    def _refused(self, error: Failure) -> HostRefusedError | None:
        """Return the refusal for a status with a Moorage code; None for any other status."""
        if isinstance(error, UntrustedError):
            return None
        code = moorage_code(error)
        if code is not None:
            return HostRefusedError(code, failure_sentence(error))
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            sentence = f"The agent at {self._endpoint} doesn't know this call yet: upgrade it."
            return HostRefusedError("agent_too_old", sentence)
        return None

    def _raise(self, error: Failure) -> NoReturn:
        """Raise HostRefusedError for a definite refusal, else ContactLostError."""
        if self._is_too_much(error):
            raise self._too_much(error) from None
        lost = ContactLostError(f"The connection to the agent at {self._endpoint} was lost: {failure_sentence(error)}")
        raise self._refused(error) or lost from None

    def _is_too_much(self, error: Failure) -> bool:
        """Whether the agent exceeded a limit: the controller's, or gRPC's (a status without a Moorage code)."""
        if isinstance(error, UntrustedError):
            return True
        return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and moorage_code(error) is None

    def _too_much(self, error: Failure) -> ContactLostError:
        broken = error if isinstance(error, UntrustedError) else UntrustedError("A message was too large.")
        return said_too_much(f"The agent at {self._endpoint}", broken)


def _asked() -> tuple[tuple[str, str], ...]:
    """Return the metadata with the request id, which correlates the agent's log with the controller's."""
    found = request_id()
    return ((REQUEST_ID_KEY, found),) if found else ()
