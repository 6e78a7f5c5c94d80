"""Settings from the environment, under the names of the backend guide, and the secrets they lead to."""

import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from moorage_controller.errors import StartupError

_MIN_SECRET = 32
_WELL_KNOWN = frozenset({"your-super-secret-jwt-key-change-this", "your-encryption-key-for-ssh-credentials"})
"""The guide's own examples, which are long enough to pass for secrets."""


class Settings(BaseSettings):
    """Everything that can be set. Each field's description is its documentation."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    port: Annotated[int, Field(ge=0, le=65535, description="TCP port of the REST API.")] = 3000
    host: Annotated[str, Field(description="Address the REST API listens on.")] = "127.0.0.1"
    node_env: Annotated[
        Literal["production", "development", "test"],
        Field(description="`production` refuses to start with a missing, short or well-known secret."),
    ] = "development"
    database_url: Annotated[
        str, Field(repr=False, description="`postgresql://user:password@host/name`; empty: SQLite in the data folder.")
    ] = ""
    jwt_secret: Annotated[str, Field(repr=False, description="Signs login tokens; 32 characters or more.")] = ""
    encryption_key: Annotated[
        str, Field(repr=False, description="Encrypts secrets in the database; any text of 32 characters or more.")
    ] = ""
    encryption_key_previous: Annotated[
        str, Field(repr=False, description="Older encryption keys, comma-separated: read with, never written with.")
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level that is logged.")
    ] = "info"
    moorage_data_dir: Annotated[Path, Field(description="Folder of SQLite's database and of secrets made here.")] = (
        Path("/var/lib/moorage-controller")
    )
    public_url: Annotated[str, Field(description="The URL under which hosts and people reach this controller.")] = ""
    admin_username: Annotated[str, Field(description="First admin's name; first start only.")] = "admin"
    admin_password: Annotated[
        str, Field(repr=False, description="First admin's password; without it one is made and printed once.")
    ] = ""
    operation_limit_minutes: Annotated[
        int, Field(ge=1, le=1440, description="Minutes after which a start is stopped on its host.")
    ] = 30

    rate_limit_per_minute: Annotated[
        int,
        Field(ge=0, description="Requests a minute of one user, or of one address without a token; 0: no limit."),
    ] = 600

    @property
    def base_url(self) -> str:
        """The URL that hosts use, without a slash at its end."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def sqlite_path(self) -> Path | None:
        """The database file, None on PostgreSQL."""
        return None if self.database_url else self.moorage_data_dir / "moorage.db"


def load() -> Settings:
    """Read the environment. Raises StartupError naming each variable that is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise StartupError("bad_setting", f"The environment has settings that can't be used: {wrong}.") from None
    for name in ("jwt_secret", "encryption_key"):
        _check_secret(settings, name)
    return settings


def _check_secret(settings: Settings, name: str) -> None:
    value, variable = getattr(settings, name), name.upper()
    production = settings.node_env == "production"
    if production and not value:
        raise StartupError("missing_secret", f"{variable} must be set when NODE_ENV is production.")
    if value and len(value) < _MIN_SECRET:
        raise StartupError("short_secret", f"{variable} is too short: use {_MIN_SECRET} random characters or more.")
    if production and value in _WELL_KNOWN:
        raise StartupError(
            "well_known_secret", f"{variable} is the guide's example: use random characters of your own."
        )


def prepare_data_dir(settings: Settings) -> None:
    """Make the data folder, for its owner alone. Raises StartupError where that can't be."""
    try:
        settings.moorage_data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            "data_dir",
            f"The data folder {settings.moorage_data_dir} can't be made ({error.strerror}): "
            "set MOORAGE_DATA_DIR to a folder this user may write to.",
        ) from None


def secret(settings: Settings, name: Literal["jwt_secret", "encryption_key"]) -> str:
    """Return a secret: the environment's, else the one kept in the data folder, made on first use (mode 0600)."""
    given: str = getattr(settings, name)
    if given:
        return given
    path = settings.moorage_data_dir / name
    if not path.exists():
        _write_secret(path)
    kept = path.read_text().strip()
    if len(kept) < _MIN_SECRET:
        raise StartupError("damaged_secret", f"{path} is damaged: restore it from a backup, or set {name.upper()}.")
    return kept


def _write_secret(path: Path) -> None:
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
