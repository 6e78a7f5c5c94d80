"""Join tokens and the enrolment call of a host, over HTTP."""

from moorage_common.clock import to_millis

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import EnrollIn, EnrollOut, JoinTokenOut


async def create_join_token(call: Call) -> Reply:
    """POST /api/servers/{id}/enrollment-token.

    The reply contains a secret that is shown once, so `Idempotency-Key` has no effect here.
    """
    token, expires_at = await call.services.enrollments.new_token(call.id(), call.actor)
    # The token is read from standard input: an argument would appear in the host's process list.
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
