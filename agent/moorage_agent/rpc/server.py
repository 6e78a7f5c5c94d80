"""The gRPC server: mutual TLS 1.3, and only the controller is accepted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from moorage_common.logging import REQUEST_ID_KEY, is_request_id
from moorage_common.rpc.v1 import agent_pb2, agent_pb2_grpc
from moorage_common.tls.x509 import CONTROLLER_URI

from moorage_agent.errors import SetupError
from moorage_agent.rpc.gate import HANDSHAKE_SECONDS, Gate
from moorage_agent.rpc.servicer import CODE_KEY, AgentServicer
from moorage_agent.settings import Settings

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # The controller pings every ten seconds, with or without calls.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A connection without a certificate holds a file descriptor for this long at most; gRPC's default is two minutes.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
)
_Stamp = tuple[tuple[int, int, int], ...]
Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger(__name__)


class OnlyTheController(grpc.aio.ServerInterceptor):
    """Interceptor: rejects every caller whose certificate is not the controller's, on every method.

    The handshake accepts any certificate of the authority; another agent's must not give access to this one.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - a handler of whatever messages
        """Return the handler with the check in front."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _checked_call(handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _checked_stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        # There is no check for methods with a request stream yet, so they are rejected.
        return None


def _checked_call(behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def checked(request: Any, context: Context) -> Any:  # noqa: ANN401 - whatever messages
        await _check(context)
        with structlog.contextvars.bound_contextvars(**_asked(context)):
            return await behaviour(request, context)

    return checked


def _checked_stream(
    behaviour: Callable[[Any, Context], AsyncIterator[Any] | Awaitable[None]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def checked(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401 - whatever messages
        await _check(context)
        replies = behaviour(request, context)
        if isinstance(replies, AsyncIterator):
            async for reply in replies:
                yield reply
        else:
            await replies  # the health service writes to the context by itself

    return checked


def _asked(context: Context) -> dict[str, str]:
    """Return the log context of a call: the id of the originating API request, if valid."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_KEY and isinstance(value, str) and is_request_id(value):
            return {"request_id": value}
    return {}


async def _check(context: Context) -> None:
    presented = {name: list(values) for name, values in context.auth_context().items()}
    if presented.get("ssl_tls_version") != [b"TLSv1.3"]:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "This agent speaks TLS 1.3 only.", ((CODE_KEY, "tls_version"),)
        )
    if CONTROLLER_URI.encode() not in presented.get("peer_uri", []):
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            "This agent obeys its controller only, and this certificate is not the controller's.",
            ((CODE_KEY, "not_the_controller"),),
        )


class AgentServer:
    """The gRPC server behind the gate; a changed certificate gets a new server, without a restart of the agent.

    `grpc.dynamic_ssl_server_credentials` isn't used: with it, connections that end before their handshake sometimes
    abort the whole process ("sync.cc: Check failed: prior > 0", grpcio 1.85), so any stranger could stop the agent.
    """

    def __init__(self, settings: Settings, gate: Gate, servicer: AgentServicer) -> None:
        self._files = (settings.identity_file, settings.ca_file)
        self._gate = gate
        self._servicer = servicer
        self._path = Path()
        self._turn = asyncio.Lock()
        self._servers: list[grpc.aio.Server] = []
        """All but the last one only serve their existing connections: a renewal ends no call."""
        self._stamp: _Stamp = ()

    async def start(self) -> None:
        """Start serving and accepting. Raises SetupError if the certificate can't be used."""
        try:
            await self._serve()
        except (OSError, RuntimeError, ValueError) as error:
            raise SetupError(f"The agent can't serve with its certificate ({error}): enrol this host again.") from None
        await self._gate.start(self.target)

    async def target(self) -> Path:
        """Return the socket for a new connection: that of a server with the current certificate."""
        async with self._turn:
            if _stamp(self._files) != self._stamp:
                try:
                    await self._serve()
                    log.info("certificate_used")
                except (OSError, RuntimeError, ValueError) as error:
                    log.warning("certificate_not_used", error=str(error))
        return self._path

    async def stop(self, grace: float) -> None:
        """Stop; running calls have that many seconds to finish."""
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    async def _serve(self) -> None:
        """Start a server with the current certificate, and have the gate forward new connections to it."""
        self._stamp = _stamp(self._files)
        path = self._gate.socket_path(len(self._servers))
        server = grpc.aio.server(interceptors=[OnlyTheController()], options=_OPTIONS)
        agent_pb2_grpc.add_AgentServicer_to_server(self._servicer, server)
        await _add_health(server)
        server.add_secure_port(f"unix:{path}", _credentials(self._files))
        await server.start()
        path.chmod(0o600)
        self._servers.append(server)
        self._path = path


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


def _credentials(files: tuple[Path, Path]) -> grpc.ServerCredentials:
    # Key and certificate are in the same file: each PEM reader takes its own part.
    identity, ca = (file.read_bytes() for file in files)
    return grpc.ssl_server_credentials([(identity, identity)], root_certificates=ca, require_client_auth=True)


def _stamp(files: tuple[Path, Path]) -> "_Stamp":
    found = []
    for file in files:
        with suppress(OSError):
            about = file.stat()
            found.append((about.st_mtime_ns, about.st_ino, about.st_size))
    return tuple(found)
