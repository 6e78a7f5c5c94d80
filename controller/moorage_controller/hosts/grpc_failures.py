"""User-facing sentences for failed gRPC calls. gRPC's own texts are only logged."""

from collections.abc import Iterable
from typing import cast

import grpc
import grpc.aio
import structlog
from moorage_common.untrusted import UntrustedError, clean_line

log = structlog.get_logger(__name__)

Failure = grpc.aio.AioRpcError | UntrustedError

_GRPC_TEXTS = {
    "connection refused": "nothing listens there: see that moorage-agent runs on the host.",
    "no route to host": "there is no route to the host.",
    "network is unreachable": "there is no route to the host.",
    "connection timed out": "the host doesn't answer.",
    "failed to connect before": "the host doesn't answer.",
    "timeout occurred": "the host doesn't answer.",
    "dns resolution": "the host's name can't be resolved.",
    "domain name not found": "the host's name can't be resolved.",
    "certificate": "the TLS handshake failed: the certificate isn't that of this server's agent.",
    "handshake": "the TLS handshake failed: see that it is this server's agent that listens there.",
    "ssl": "the TLS handshake failed: see that it is this server's agent that listens there.",
    "connection reset": "the connection was cut.",
    "socket closed": "the connection was cut.",
    "broken pipe": "the connection was cut.",
    "goaway": "the agent ended the connection.",
}
"""Sentences by a part of gRPC's text (lower case); the first match counts."""
_GRPC_STATUSES = {
    grpc.StatusCode.UNAVAILABLE: "the host doesn't answer, or the connection was cut.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "no answer came in time.",
    grpc.StatusCode.CANCELLED: "the call was cut off.",
    grpc.StatusCode.UNAUTHENTICATED: "the agent doesn't accept this controller's certificate.",
    grpc.StatusCode.PERMISSION_DENIED: "the agent doesn't accept this controller.",
    grpc.StatusCode.INTERNAL: "the agent's reply makes no sense.",
    grpc.StatusCode.UNKNOWN: "the agent failed in a way it doesn't tell: see its log on the host.",
}
_MOST_DETAILS = 500
"""Maximum length of gRPC's text in the log, in characters."""


def failure_sentence(error: Failure) -> str:
    """Return a sentence of the controller or of the agent, never gRPC's own text, which is only logged."""
    if isinstance(error, UntrustedError):
        return str(error)
    text = error.details() or ""
    if moorage_code(error) is not None:
        return text or "The agent refuses this, and doesn't say why: see its log on the host."
    log.info("grpc_failed", status=error.code().name, details=clean_line(text, _MOST_DETAILS))
    lowered = text.lower()
    found = next((sentence for part, sentence in _GRPC_TEXTS.items() if part in lowered), None)
    return found or _GRPC_STATUSES.get(error.code(), f"it failed with gRPC's status {error.code().name}.")


def moorage_code(error: grpc.aio.AioRpcError) -> str | None:
    """Return the stable Moorage code from a status that the agent itself sent; None for any other status."""
    # The type stubs declare one pair; it is a sequence of pairs.
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return next((str(value) for key, value in metadata if key == "moorage-code"), None)
