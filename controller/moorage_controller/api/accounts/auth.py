"""Login, logout, change of the own password, and token verification over HTTP."""

from moorage_controller.api.accounts.schemas import PasswordIn
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import LoginIn, LoginOut, SuccessOut, UserOut, VerifyOut


async def login(call: Call) -> Reply:
    """POST /api/auth/login."""
    body = call.body(LoginIn)
    user, token = await call.services.users.login(body.username, body.password, call.origin)
    return ok(LoginOut(user=UserOut(id=user.id, username=user.username, role=user.role), token=token))


async def logout(call: Call) -> Reply:
    """POST /api/auth/logout."""
    await call.services.users.logout(call.principal, call.actor)
    return ok(SuccessOut())


async def change_password(call: Call) -> Reply:
    """POST /api/auth/password: change the own password; end other sessions, and with `keepTokens` false API tokens."""
    body = call.body(PasswordIn)
    await call.services.users.change_password(
        call.principal, body.current_password, body.new_password, call.actor, keep_tokens=body.keep_tokens
    )
    return ok(SuccessOut())


async def verify(call: Call) -> Reply:
    """GET /api/auth/verify."""
    who = call.principal
    return ok(VerifyOut(user=UserOut(id=who.user_id, username=who.username, role=who.role.name.lower())))
