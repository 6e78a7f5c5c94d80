"""The gRPC server: mutual TLS 1.3, and nobody but the controller is let in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from moorage_common.logging import REQUEST_ID_KEY, is_request_id
from moorage_common.rpc.v1 import agent_pb2, agent_pb2_grpc
from moorage_common.x509 import CONTROLLER_URI

from moorage_agent.errors import SetupError
from moorage_agent.servicer import CODE_KEY, AgentServicer
from moorage_agent.settings import Settings

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # The controller pings every ten seconds, calls or not.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Whoever connects without a certificate holds a file for as long as this, and no longer; gRPC's own is two minutes.
    ("grpc.server_handshake_timeout_ms", 5_000),
)
Context = grpc.aio.ServicerContext[Any, Any]


class OnlyTheController(grpc.aio.ServerInterceptor):
    """Refuses every caller whose certificate is not the controller's, on every method.

    The handshake lets any certificate of the authority in: another agent's must not open this one.
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
        # A method that takes a stream has no check yet, so it has no way in.
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
            await replies  # the health service's way: it writes to the context by itself

    return checked


def _asked(context: Context) -> dict[str, str]:
    """Return what the lines that are logged meanwhile bear: the id of the request that the call goes back to."""
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


async def serve(settings: Settings, listen: str, servicer: AgentServicer) -> grpc.aio.Server:
    """Start the server. Raises SetupError where the address can't be listened on."""
    server = grpc.aio.server(interceptors=[OnlyTheController()], options=_OPTIONS)
    agent_pb2_grpc.add_AgentServicer_to_server(servicer, server)
    await _add_health(server)
    try:
        server.add_secure_port(listen, _credentials(settings))
    except RuntimeError:
        raise SetupError(f"{listen} can't be listened on: stop what uses it, or enrol with another --listen.") from None
    await server.start()
    return server


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    """Return credentials that use the files as they are at each handshake: a renewal needs no restart."""
    files = (settings.identity_file, settings.ca_file)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), lambda: _configuration(files), require_client_authentication=True
    )


def _configuration(files: tuple[Path, Path]) -> grpc.ServerCertificateConfiguration:
    # Of the one file, each reader of PEM takes what is its own.
    identity, ca = (file.read_bytes() for file in files)
    return grpc.ssl_server_certificate_configuration([(identity, identity)], root_certificates=ca)
