"""Personal API tokens over HTTP."""

from moorage_common.clock import from_millis, to_millis

from moorage_controller.api.accounts.schemas import TokenIn, TokenMadeOut, TokenOut
from moorage_controller.api.convert import millis
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import DeletedOut
from moorage_controller.store.tables.api_tokens import ApiToken


def token_out(token: ApiToken) -> TokenOut:
    """Convert a token."""
    return TokenOut(
        id=token.id,
        name=token.name,
        scopes=token.scopes.split(","),
        expires_at=millis(token.expires_at),
        last_used_at=millis(token.last_used_at),
        created_at=to_millis(token.created_at),
    )


async def list_tokens(call: Call) -> Reply:
    """GET /api/tokens."""
    return ok([token_out(token) for token in await call.services.api_tokens.all(call.principal)])


async def list_user_tokens(call: Call) -> Reply:
    """GET /api/users/{id}/tokens: list the tokens of any user, without their secrets."""
    return ok([token_out(token) for token in await call.services.api_tokens.of_user(call.id())])


async def create_token(call: Call) -> Reply:
    """POST /api/tokens.

    The reply contains a secret that is stored nowhere, so `Idempotency-Key` has no effect here.
    """
    body = call.body(TokenIn)
    expires_at = None if body.expires_at is None else from_millis(body.expires_at)
    token, secret = await call.services.api_tokens.create(
        call.principal, body.name, body.scopes, expires_at, call.actor
    )
    return ok(TokenMadeOut(**token_out(token).model_dump(), token=secret), 201)


async def revoke_token(call: Call) -> Reply:
    """DELETE /api/tokens/{id}: revoke an own token; an admin may revoke any user's."""
    await call.services.api_tokens.revoke(call.principal, call.id(), call.actor)
    return ok(DeletedOut(message="Token revoked"))
