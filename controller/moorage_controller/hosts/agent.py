"""The way to a host through its agent: gRPC with mutual TLS."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NoReturn, cast
from uuid import UUID

import grpc
import grpc.aio
from moorage_common.logging import REQUEST_ID_KEY, request_id
from moorage_common.logs import LogLine, LogsWanted
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts import messages
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
)

_CONNECT_SECONDS = 5.0
_CALL_SECONDS = 30.0
_LOOK_SECONDS = 10.0
_HEARTBEAT_SECONDS = 35.0
"""Three missed heartbeats of ten seconds, and some: then a watch is taken for lost."""


class AgentTransport:
    """One host's agent behind the common interface."""

    name = "agent"

    def __init__(self, channel: grpc.aio.Channel, endpoint: str) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._stub = AgentStub(channel)

    async def connect(self) -> None:
        """Ask for the host's facts: the cheapest call that proves both ends, and that changes nothing."""
        await self.info()

    async def info(self) -> HostInfo:
        """Ask the host's facts now. Raises HostUnreachableError after five seconds at most."""
        try:
            reply = await self._stub.GetInfo(pb.GetInfoRequest(), timeout=_CONNECT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._unreachable(error) from None
        return messages.host_info(reply.host)

    async def prepare_renewal(self) -> bytes:
        """Have the host make a new key, and return its request (PEM). Raises ContactLostError, HostRefusedError."""
        try:
            reply = await self._stub.PrepareRenewal(pb.PrepareRenewalRequest(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._raise(error)
        return reply.signing_request

    async def install_certificate(self, certificate: bytes) -> None:
        """Give the host the certificate (PEM) for that key. Raises ContactLostError, HostRefusedError."""
        request = pb.InstallCertificateRequest(certificate=certificate)
        try:
            await self._stub.InstallCertificate(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._raise(error)

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        try:
            request = messages.start_request(order)
            await self._stub.StartOperation(request, timeout=_CALL_SECONDS, metadata=_asked())
        except grpc.aio.AioRpcError as error:
            self._raise(error)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end."""
        request = pb.FollowOperationRequest(operation_id=str(operation_id), after=after)
        try:
            async for reply in self._stub.FollowOperation(request):
                if reply.WhichOneof("content") == "end":
                    yield messages.end(reply.end)
                    return
                yield Output(reply.output.offset, reply.output.data)
        except grpc.aio.AioRpcError as error:
            self._raise(error)
        raise ContactLostError(f"The agent at {self._endpoint} ended the stream before the operation's end.")

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or bury it."""
        request = pb.CancelOperationRequest(operation_id=str(operation_id), by=by)
        try:
            reply = await self._stub.CancelOperation(request, timeout=_CALL_SECONDS, metadata=_asked())
        except grpc.aio.AioRpcError as error:
            self._raise(error)
        return messages.cancel_outcome(reply.outcome)

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change; heartbeats only keep it alive."""
        call = self._stub.Watch(pb.WatchRequest(apps=[messages.app(a) for a in apps]))
        try:
            while True:
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    reply = await call.read()
                if not isinstance(reply, pb.WatchResponse):
                    raise ContactLostError(f"The agent at {self._endpoint} ended the watch.")
                item = messages.watch_item(reply)
                if item is not None:
                    yield item
        except TimeoutError:
            raise ContactLostError(f"The agent at {self._endpoint} has not been heard of for a while.") from None
        except grpc.aio.AioRpcError as error:
            self._raise(error)
        finally:
            call.cancel()

    async def look(self, app: HostApp) -> AppObservation:
        """Look at an app now. Raises HostUnreachableError, HostRefusedError."""
        request = pb.GetAppRequest(app=messages.app(app))
        try:
            reply = await self._stub.GetApp(request, timeout=_LOOK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) or self._unreachable(error) from None
        return messages.observation(reply.app)

    async def projects(self) -> Sequence[HostProject]:
        """List the Compose projects that the host lets us see. Raises HostUnreachableError, HostRefusedError."""
        try:
            reply = await self._stub.ListProjects(pb.ListProjectsRequest(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) or self._unreachable(error) from None
        return [messages.project(project) for project in reply.projects]

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of what an app's containers write."""
        call = self._stub.Logs(messages.logs_request(app, wanted))
        try:
            async for reply in call:
                yield messages.log_lines(reply)
        except grpc.aio.AioRpcError as error:
            self._raise(error)
        finally:
            call.cancel()

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Tell the agent how long an app may run. Raises HostUnreachableError, HostRefusedError."""
        request = pb.SetDeadlineRequest(app=messages.app(app), deadline=messages.deadline(deadline))
        try:
            await self._stub.SetDeadline(request, timeout=_CONNECT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) or self._unreachable(error) from None

    def _unreachable(self, error: grpc.aio.AioRpcError) -> HostUnreachableError:
        details = _details(error)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = "no answer in time"
        return HostUnreachableError(f"The agent at {self._endpoint} can't be reached: {details}")

    def _refused(self, error: grpc.aio.AioRpcError) -> HostRefusedError | None:
        """Return the definite answer that a status with a code of ours is; None for any other."""
        code = _moorage_code(error)
        if code is not None:
            return HostRefusedError(code, _details(error))
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            sentence = f"The agent at {self._endpoint} doesn't know this call yet: upgrade it."
            return HostRefusedError("agent_too_old", sentence)
        return None

    def _raise(self, error: grpc.aio.AioRpcError) -> NoReturn:
        """Raise HostRefusedError for a definite answer, else ContactLostError."""
        lost = ContactLostError(f"The connection to the agent at {self._endpoint} was lost: {_details(error)}")
        raise self._refused(error) or lost from None


def _details(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name


def _moorage_code(error: grpc.aio.AioRpcError) -> str | None:
    # The stubs call it one pair; it is a sequence of pairs.
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return next((str(value) for key, value in metadata if key == "moorage-code"), None)


def _asked() -> tuple[tuple[str, str], ...]:
    """Return the metadata by which a line in the agent's log finds its request in the controller's."""
    found = request_id()
    return ((REQUEST_ID_KEY, found),) if found else ()
