"""Join tokens, and the one call a host makes."""

from moorage_common.clock import to_millis

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import EnrollIn, EnrollOut, JoinTokenOut


async def create_join_token(call: Call) -> Reply:
    """POST /api/servers/{id}/enrollment-token.

    The reply holds a secret that is shown once, so `Idempotency-Key` means nothing here.
    """
    token, expires_at = await call.services.enrollments.new_token(call.id(), call.actor)
    # The token comes by standard input: an argument would show in the host's process list.
    command = f"moorage-agent enroll --controller {call.services.base_url} --token-file - --allow-root DIR"
    return ok(JoinTokenOut(token=str(token), expires_at=to_millis(expires_at), command=command), 201)


async def enroll(call: Call) -> Reply:
    """POST /api/enroll."""
    body = call.body(EnrollIn)
    member = await call.services.enrollments.enroll(body.token, body.csr, body.endpoint, body.version, call.origin)
    return ok(
        EnrollOut(
            certificate=member.certificate, ca=member.ca, server_id=member.server_id, agent_name=member.agent_name
        )
    )
