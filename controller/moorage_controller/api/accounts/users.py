"""Users over HTTP, for admins."""

from datetime import datetime

from moorage_controller.api.accounts.schemas import AccountChanges, AccountIn, AccountOut
from moorage_controller.api.convert import given, iso
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import DeletedOut
from moorage_controller.store.tables.users import User


def account_out(user: User) -> AccountOut:
    """Convert a user."""
    return AccountOut(
        id=user.id,
        username=user.username,
        email=user.email,
        full_name=user.full_name,
        role=user.role,
        is_active=user.is_active,
        last_login_at=_iso(user.last_login_at),
        created_at=iso(user.created_at),
        updated_at=iso(user.updated_at),
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


async def list_users(call: Call) -> Reply:
    """GET /api/users."""
    return ok([account_out(user) for user in await call.services.accounts.all()])


async def get_user(call: Call) -> Reply:
    """GET /api/users/{id}."""
    return ok(account_out(await call.services.accounts.get(call.id())))


async def create_user(call: Call) -> Reply:
    """POST /api/users."""
    body = call.body(AccountIn)
    fields = body.model_dump(exclude={"password"})
    once = call.once(account_out)
    return ok(account_out(await call.services.accounts.create(fields, body.password, call.actor, once)), 201)


async def update_user(call: Call) -> Reply:
    """PUT /api/users/{id}."""
    body = call.body(AccountChanges)
    changes = given(body, nullable={"email", "full_name"})
    changes.pop("password", None)
    return ok(account_out(await call.services.accounts.update(call.id(), changes, body.password, call.actor)))


async def delete_user(call: Call) -> Reply:
    """DELETE /api/users/{id}."""
    await call.services.accounts.delete(call.id(), call.actor)
    return ok(DeletedOut(message="User deleted"))
