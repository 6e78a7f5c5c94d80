"""Commands on the database and the running controller, as used by the command line."""

import asyncio
import json
import secrets
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from moorage_common.clock import SystemClock
from pydantic import ValidationError

from moorage_controller import settings as settings_module
from moorage_controller.api.accounts.schemas import AccountIn
from moorage_controller.auth.passwords import Passwords
from moorage_controller.auth.roles import Actor
from moorage_controller.data_folder import lock
from moorage_controller.database import open_database
from moorage_controller.errors import ConflictError, StartupError
from moorage_controller.services.accounts.accounts import Accounts
from moorage_controller.services.admin import backup, key_rotation
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.database.migrate import require_current, unmigrated

_MADE_BYTES = 12


async def create_account(settings: Settings, name: str, password: str | None, role: str) -> str | None:
    """Create a user; return the password if it was generated here. Raises StartupError.

    The lock of the data folder guards against a second `serve`, which would send operations twice. It isn't needed for
    a transaction, because SQLite itself serializes processes. So this takes no lock, and never migrates.
    """
    made = None if password is not None else secrets.token_urlsafe(_MADE_BYTES)
    try:
        account = AccountIn.model_validate({"username": name, "password": made or password, "role": role})
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise StartupError("invalid_user", f"The user can't be made: {wrong}") from None
    database = _existing_database(settings)
    passwords = Passwords()
    try:
        await require_current(database)
        fields = account.model_dump(exclude={"password"})
        await Accounts(database, passwords).create(fields, account.password, Actor(None, "command line"))
    except ConflictError as error:
        raise StartupError(error.code, error.sentence) from None
    finally:
        await passwords.aclose()
        await database.close()
    return made


async def back_up(settings: Settings, path: Path, say: Callable[[str], None]) -> None:
    """Back up the database to a new file, and report its content and the secrets to keep. Raises StartupError."""
    database = _existing_database(settings)
    try:
        header, size = await backup.back_up(database, path)
    finally:
        await database.close()
    say(f"{path} is written: {header.rows} rows of {len(header.tables)} tables in {size} bytes.")
    key, jwt = (_place(settings, name) for name in ("encryption_key", "jwt_secret"))
    say(
        f"Not in it: {key}, without which it can't be restored, so keep that too, in another place; and {jwt}, which "
        "may be a new one: after a restore everybody logs in anew."
    )


async def restore(settings: Settings, path: Path, say: Callable[[str], None]) -> None:
    """Restore a backup into an empty database. Raises StartupError; then nothing was written to it."""
    key = settings_module.kept_secret(settings, "encryption_key")
    keyring = None if key is None else Keyring([key, *settings.previous_keys])
    header = await asyncio.to_thread(backup.check, path, keyring)
    say(
        f"{path} is whole, and its secrets can be opened: {header.rows} rows of {len(header.tables)} tables, "
        f"of {header.made_at:%Y-%m-%d %H:%M:%S} UTC, made by release {header.release}."
    )
    settings_module.prepare_data_dir(settings)
    release = lock(settings)
    database = open_database(settings, SystemClock())
    try:
        await backup.restore(database, path)
    finally:
        await database.close()
        release()
    say("All of it is restored: `moorage-controller serve` can start.")


async def rotate_key(settings: Settings, say: Callable[[str], None]) -> None:
    """Encrypt all secrets with the current key, and report the result and the next step. Raises StartupError.

    It never creates a key, because a running controller would not have it.
    """
    key = settings_module.kept_secret(settings, "encryption_key")
    if key is None:
        raise StartupError(
            "missing_secret",
            "There is no encryption key here: set ENCRYPTION_KEY to the new key, and start the controller with it and "
            "the old one in ENCRYPTION_KEY_PREVIOUS first.",
        )
    database = _existing_database(settings)
    try:
        await require_current(database)
        done = await key_rotation.rotate(database, Keyring([key, *settings.previous_keys]))
    finally:
        await database.close()
    say(f"Encrypted anew: {done.resealed} of {done.found} secrets.")
    for sealed, error in done.unopened:
        say(f"Left as it is: {sealed.column} of row {sealed.row}. {error}")
    if done.unopened:
        raise StartupError(
            "undecryptable_secret",
            f"{len(done.unopened)} secrets can't be opened, and were left as they are: keep the old keys, add what is "
            "missing to ENCRYPTION_KEY_PREVIOUS and run this again, or give those servers their credentials anew.",
        )
    if not done.ended:
        raise StartupError(
            "old_key_in_use",
            "A controller still encrypts with an old key: start each with the new ENCRYPTION_KEY, and run this again.",
        )
    say(
        "All are encrypted with the current key: take ENCRYPTION_KEY_PREVIOUS away from every controller, and start it "
        "anew. Keep the old key for as long as you keep backups from before."
    )


def _existing_database(settings: Settings) -> Database:
    if settings.sqlite_path is not None and not settings.sqlite_path.exists():
        raise unmigrated(None)
    return open_database(settings, SystemClock())


def _place(settings: Settings, name: str) -> str:
    """Return the place of a secret, for a sentence."""
    return name.upper() if getattr(settings, name) else f"the file {settings.moorage_data_dir / name}"


def problems(settings: Settings) -> list[str]:
    """Request /readyz of the controller on this machine, and return its problems. Blocks."""
    scheme = "http" if settings.tls_cert_file is None else "https"
    # A wildcard address isn't connectable; the certificate's name doesn't match the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - what is set
    trusting = ssl._create_unverified_context()  # noqa: S323, SLF001 - asked of itself, and nothing secret is sent
    try:
        with urlopen(f"{scheme}://{host}:{settings.port}/readyz", timeout=5, context=trusting) as reply:  # noqa: S310
            reply.read()
    except HTTPError as error:
        told: list[str] = json.loads(error.read()).get("problems", [])
        return told or [f"It answers {error.code}."]
    except OSError as error:
        return [f"It doesn't answer: {error}"]
    return []
