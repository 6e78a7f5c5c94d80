"""The RPCs: parse, call, convert; refusals become gRPC statuses with one of Moorage's own codes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, NoReturn
from uuid import UUID

import grpc
import grpc.aio
import structlog
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.engine_http import EngineProblemError
from moorage_common.docker.logs import TooManyLogsError, UnknownServiceError
from moorage_common.journal.journal import JournalError, Record, Refused
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1 import agent_pb2_grpc
from moorage_common.untrusted import clean_sentence

from moorage_agent.apps.identities import WatchedApp
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.docker.inspection import Inspection
from moorage_agent.docker.watch import Watcher
from moorage_agent.errors import RefusalError
from moorage_agent.identity import certificates
from moorage_agent.operations.compose_runner import Chunk, ComposeRunner
from moorage_agent.rpc import convert
from moorage_agent.settings import Settings

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

CODE_KEY = "moorage-code"
_REQUEST_SECONDS = 10.0

_STATUS = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "operation_unknown": grpc.StatusCode.NOT_FOUND,
    "service_not_found": grpc.StatusCode.NOT_FOUND,
    "too_many_logs": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "path_not_allowed": grpc.StatusCode.PERMISSION_DENIED,
    "policy_unreadable": grpc.StatusCode.PERMISSION_DENIED,
    "provider_not_allowed": grpc.StatusCode.PERMISSION_DENIED,
    "remote_resource_not_allowed": grpc.StatusCode.PERMISSION_DENIED,
    "bind_mount_not_allowed": grpc.StatusCode.PERMISSION_DENIED,
    "journal_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "deadlines_not_kept": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "journal_unavailable": grpc.StatusCode.UNAVAILABLE,
    "engine_unreachable": grpc.StatusCode.UNAVAILABLE,
    "agent_fault": grpc.StatusCode.INTERNAL,
}
"""FAILED_PRECONDITION for all others: the state of the host doesn't allow it now."""


_CODES: dict[type[Exception], str] = {
    EngineProblemError: "engine_unreachable",
    UnknownServiceError: "service_not_found",
    TooManyLogsError: "too_many_logs",
}


class AgentServicer(agent_pb2_grpc.AgentServicer):
    """The RPCs that a controller can call on this host."""

    def __init__(
        self,
        runner: ComposeRunner,
        watcher: Watcher,
        inspection: Inspection,
        deadlines: Deadlines,
        about: convert.About,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._inspection = inspection
        self._deadlines = deadlines
        self._runner = runner
        self._watcher = watcher
        self._about = about

    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.GetInfoResponse:  # noqa: N802 - gRPC's
        """Return the host's facts, read now."""
        del request
        async with _statuses(context):
            state = await self._watcher.host_now()
        return pb.GetInfoResponse(host=convert.host(state, self._about))

    async def StartOperation(  # noqa: N802 - gRPC's
        self, request: pb.StartOperationRequest, context: Context
    ) -> pb.StartOperationResponse:
        """Start an operation, or attach to it."""
        async with _statuses(context):
            app = convert.watched_app(request.app)
            kind = convert.kind(request.kind)
            operation_id = _operation_id(request.operation_id)
            if request.HasField("deadline"):
                await self._keep(app, request.deadline)
            attached = await self._runner.start(operation_id, kind, app)
        return pb.StartOperationResponse(attached=attached)

    async def FollowOperation(  # noqa: N802 - gRPC's
        self, request: pb.FollowOperationRequest, context: Context
    ) -> AsyncIterator[pb.FollowOperationResponse]:
        """Stream output from an offset on, then the end record."""
        async with _statuses(context):
            operation_id = _operation_id(request.operation_id)
            async for item in self._runner.follow(operation_id, max(request.after, 0)):
                if isinstance(item, Record):
                    # Before it is sent: the follower knows the operation, and asks again if this message is lost.
                    await self._deadlines.forget_stop(operation_id)
                yield await self._follow_item(item)

    async def CancelOperation(  # noqa: N802 - gRPC's
        self, request: pb.CancelOperationRequest, context: Context
    ) -> pb.CancelOperationResponse:
        """Stop a start's command, or bury an operation that this host never received."""
        async with _statuses(context):
            outcome = await self._runner.cancel(_operation_id(request.operation_id), request.by or "somebody")
        return pb.CancelOperationResponse(outcome=convert.cancel_outcome(outcome))

    async def Watch(  # noqa: N802 - gRPC's
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        """Stream a snapshot, then changes."""
        async with _statuses(context):
            async for item in self._watcher.watch([convert.watched_app(a) for a in request.apps]):
                for message in convert.watch_items(item, self._about):
                    yield message

    async def GetApp(  # noqa: N802 - gRPC's
        self, request: pb.GetAppRequest, context: Context
    ) -> pb.GetAppResponse:
        """Inspect an app's containers now."""
        async with _statuses(context):
            identity = await self._inspection.identity(convert.watched_app(request.app))
            seen = await self._watcher.observe(identity)
        return pb.GetAppResponse(app=convert.observation(seen, self._watcher.boot_id))

    async def ListProjects(  # noqa: N802 - gRPC's
        self, request: pb.ListProjectsRequest, context: Context
    ) -> pb.ListProjectsResponse:
        """List the Compose projects."""
        del request
        async with _statuses(context):
            projects = await self._inspection.projects()
        return convert.projects(projects)

    async def Logs(  # noqa: N802 - gRPC's
        self, request: pb.LogsRequest, context: Context
    ) -> AsyncIterator[pb.LogsResponse]:
        """Stream the logs of an app's containers."""
        app, wanted = convert.watched_app(request.app), convert.logs_wanted(request)
        async with _statuses(context), aclosing(self._inspection.logs(app, wanted)) as batches:
            async for batch in batches:
                for message in convert.log_batches(batch):
                    yield message

    async def SetDeadline(  # noqa: N802 - gRPC's
        self, request: pb.SetDeadlineRequest, context: Context
    ) -> pb.SetDeadlineResponse:
        """Store an app's deadline."""
        async with _statuses(context):
            await self._keep(convert.watched_app(request.app), request.deadline)
        return pb.SetDeadlineResponse()

    async def PrepareRenewal(  # noqa: N802 - gRPC's
        self, request: pb.PrepareRenewalRequest, context: Context
    ) -> pb.PrepareRenewalResponse:
        """Make a new key and return a certificate signing request for it."""
        del request
        async with _statuses(context):
            asked = await asyncio.to_thread(certificates.request, self._settings, certificates.RENEWAL)
        return pb.PrepareRenewalResponse(signing_request=asked)

    async def InstallCertificate(  # noqa: N802 - gRPC's
        self, request: pb.InstallCertificateRequest, context: Context
    ) -> pb.InstallCertificateResponse:
        """Install the renewed certificate."""
        async with _statuses(context):
            try:
                await asyncio.to_thread(certificates.renewed, self._settings, request.certificate)
            except ValueError as error:
                raise RefusalError("bad_certificate", str(error)) from None
        log.info("certificate_renewed")
        return pb.InstallCertificateResponse()

    async def _keep(self, app: WatchedApp, deadline: pb.Deadline) -> None:
        app_id, run_id = _uuid(deadline.app_id, "app"), _uuid(deadline.run_id, "run") if deadline.run_id else ""
        remaining = deadline.remaining.ToTimedelta().total_seconds()
        await self._deadlines.set(app, app_id, deadline.number, run_id, remaining)

    async def _follow_item(self, item: Chunk | Record) -> pb.FollowOperationResponse:
        if isinstance(item, Chunk):
            return pb.FollowOperationResponse(output=pb.Output(offset=item.offset, data=item.data))
        identity = AppIdentity.from_spec(item.spec)
        observed = None
        if identity is not None:
            with suppress(RefusalError, TimeoutError):
                async with asyncio.timeout(_REQUEST_SECONDS):
                    seen = await self._watcher.observe(identity)
                observed = convert.observation(seen, self._watcher.boot_id)
        return pb.FollowOperationResponse(end=convert.end(item, observed))


def _operation_id(text: str) -> str:
    return _uuid(text, "operation")


def _uuid(text: str, what: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise RefusalError("invalid_request", f"The {what}'s id must be a UUID.") from None


@asynccontextmanager
async def _statuses(context: Context) -> AsyncIterator[None]:
    """Turn any exception raised inside into a gRPC status."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - logged, and reported to the caller as an internal error
        await _abort(error, context)


async def _abort(error: Exception, context: Context) -> NoReturn:
    if isinstance(error, (RefusalError, Refused, JournalError)):
        code, sentence = error.code, str(error)
    elif type(error) in _CODES:
        code, sentence = _CODES[type(error)], str(error)
    else:
        log.error("rpc_failed", exc_info=error)
        code, sentence = "agent_fault", "Something went wrong in the agent: see its log on the host."
    status = _STATUS.get(code, grpc.StatusCode.FAILED_PRECONDITION)
    # A controller accepts a limited number of bytes, and the sentence may quote a compose file.
    await context.abort(status, clean_sentence(sentence), ((CODE_KEY, code),))
    raise AssertionError("abort raises")
