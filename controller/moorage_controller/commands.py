"""What the command line does on the database beside a controller that may be running."""

import secrets

from moorage_common.clock import SystemClock
from pydantic import ValidationError

from moorage_controller.api.user_schemas import AccountIn
from moorage_controller.auth.roles import Actor
from moorage_controller.errors import ConflictError, StartupError
from moorage_controller.services.accounts import Accounts
from moorage_controller.settings import Settings
from moorage_controller.store.engine import Database, postgresql_url, sqlite_url
from moorage_controller.store.migrate import require_current, unmigrated

_MADE_BYTES = 12


async def create_account(settings: Settings, name: str, password: str | None, role: str) -> str | None:
    """Make a user; returns the password when it was made here. Raises StartupError.

    The lock of the data folder guards against a second `serve` (operations would be sent twice), not against a
    transaction: SQLite takes turns between processes by itself. So this takes no lock, and never migrates.
    """
    made = None if password is not None else secrets.token_urlsafe(_MADE_BYTES)
    try:
        account = AccountIn.model_validate({"username": name, "password": made or password, "role": role})
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise StartupError("invalid_user", f"The user can't be made: {wrong}") from None
    path = settings.sqlite_path
    if path is not None and not path.exists():
        raise unmigrated(None)
    database = Database(postgresql_url(settings.database_url) if path is None else sqlite_url(path), SystemClock())
    try:
        await require_current(database)
        fields = account.model_dump(exclude={"password"})
        await Accounts(database).create(fields, account.password, Actor(None, "command line"))
    except ConflictError as error:
        raise StartupError(error.code, error.sentence) from None
    finally:
        await database.close()
    return made
