"""Settings from environment variables, and the secrets that they configure."""

import os
import secrets
import stat
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import structlog
from moorage_common.files import write_atomic
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from moorage_controller.errors import StartupError

log = structlog.get_logger(__name__)

_MIN_SECRET = 32
_LONGEST_RUN = 43_200
"""Maximum timeout in the API, in minutes."""
_OURS = ("moorage.db*", "jwt_secret*", "encryption_key*", "controller.lock")
"""The controller's files in the data folder: SQLite's files and copies, secrets, the lock."""
_WELL_KNOWN = frozenset({"your-super-secret-jwt-key-change-this", "your-encryption-key-for-ssh-credentials"})
"""Published example secrets, which are long enough to pass the length check."""


class Settings(BaseSettings):
    """All settings. Each field's description is its documentation."""

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
    log_file: Annotated[
        Path | None,
        Field(description="File that all logs go to as well, as JSON lines; it may be moved away (logrotate)."),
    ] = None
    metrics_token: Annotated[
        str,
        Field(
            repr=False,
            description="Bearer token that Prometheus shows for /metrics, 32 characters or more; empty: no metrics.",
        ),
    ] = ""
    moorage_data_dir: Annotated[Path, Field(description="Folder of SQLite's database and of secrets made here.")] = (
        Path("/var/lib/moorage-controller")
    )
    public_url: Annotated[str, Field(description="The URL under which hosts and people reach this controller.")] = ""
    admin_username: Annotated[str, Field(description="First admin's name; first start only.")] = "admin"
    admin_password: Annotated[
        str, Field(repr=False, description="First admin's password; without it one is made and printed once.")
    ] = ""
    max_run_minutes: Annotated[
        int,
        Field(ge=1, le=_LONGEST_RUN, description="Minutes that one run may last at most, extensions included."),
    ] = _LONGEST_RUN
    stopping_soon_minutes: Annotated[
        str,
        Field(description="How many minutes before the end of a run people are warned, comma-separated; empty: never."),
    ] = "10,2"
    operation_limit_minutes: Annotated[
        int, Field(ge=1, le=1440, description="Minutes after which a start is stopped on its host.")
    ] = 30
    operation_no_progress_minutes: Annotated[
        int, Field(ge=1, le=1440, description="Minutes without any output after which a start is stopped on its host.")
    ] = 15
    operations_per_host: Annotated[
        int, Field(ge=1, le=64, description="Starts at once on one host, and stops beside them; others wait.")
    ] = 4
    operations_at_once: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Starts at once on all hosts; others wait. Stops wait for nothing but their host.",
        ),
    ] = 64
    operation_history_days: Annotated[
        int, Field(ge=1, le=3650, description="Days after which an operation that has ended is forgotten.")
    ] = 90
    operation_history_most: Annotated[
        int, Field(ge=100, description="The most operations that are remembered; the oldest are forgotten first.")
    ] = 10_000
    operation_output_days: Annotated[
        int,
        Field(
            ge=1,
            le=3650,
            description="Days for which the output of an operation that has ended is kept, and what a stopped app "
            "wrote last.",
        ),
    ] = 7
    ssh_login_shell_seconds: Annotated[
        int, Field(ge=1, le=60, description="Seconds that a login shell on a host may take until it runs a command.")
    ] = 5
    audit_days: Annotated[
        int,
        Field(
            ge=0,
            le=36_500,
            description="Days after which entries of the audit log leave the database for files (JSON Lines, gzip) in "
            "the data folder's `audit`; 0: never.",
        ),
    ] = 0
    moorage_agent_bundle: Annotated[
        Path | None, Field(description="The agent's bundle (tar.gz), which is installed on hosts over SSH.")
    ] = None
    rate_limit_per_minute: Annotated[
        int,
        Field(ge=0, description="Requests a minute of one user, or of one address without a token; 0: no limit."),
    ] = 600
    frontend_url: Annotated[
        str, Field(description="Origins of dashboards that may call from a browser, comma-separated; no wildcard.")
    ] = ""
    trusted_proxies: Annotated[
        str, Field(description="Networks (CIDR, comma-separated) of proxies whose X-Forwarded-* headers are believed.")
    ] = ""
    tls_cert_file: Annotated[
        Path | None, Field(description="PEM certificate chain: with it and TLS_KEY_FILE, HTTPS is served.")
    ] = None
    tls_key_file: Annotated[Path | None, Field(description="PEM key of TLS_CERT_FILE, without a password.")] = None

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("write postgresql://user:password@host:5432/name, or leave it empty for SQLite")
        return value

    @field_validator("frontend_url")
    @classmethod
    def _check_frontend_url(cls, value: str) -> str:
        _origins(value)
        return value

    @field_validator("stopping_soon_minutes")
    @classmethod
    def _check_stopping_soon(cls, value: str) -> str:
        _minutes(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_trusted_proxies(cls, value: str) -> str:
        _networks(value)
        return value

    @field_validator("tls_cert_file", "tls_key_file", "moorage_agent_bundle", "log_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE belong together: set both or neither")
        return self

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins of FRONTEND_URL, in the form of an Origin header."""
        return _origins(self.frontend_url)

    @property
    def warnings(self) -> tuple[int, ...]:
        """The minutes of STOPPING_SOON_MINUTES."""
        return _minutes(self.stopping_soon_minutes)

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of TRUSTED_PROXIES."""
        return _networks(self.trusted_proxies)

    @property
    def previous_keys(self) -> list[str]:
        """The keys of ENCRYPTION_KEY_PREVIOUS, and the whole value as well, because a key may contain a comma."""
        whole = self.encryption_key_previous
        return list(dict.fromkeys([*_listed(whole), whole])) if whole else []

    @property
    def base_url(self) -> str:
        """The URL for hosts, without a trailing slash."""
        scheme = "http" if self.tls_cert_file is None else "https"
        return (self.public_url or f"{scheme}://{self.host}:{self.port}").rstrip("/")

    @property
    def sqlite_path(self) -> Path | None:
        """The SQLite database file, None with PostgreSQL."""
        return None if self.database_url else self.moorage_data_dir / "moorage.db"


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _origins(text: str) -> tuple[str, ...]:
    return tuple(_origin(url) for url in _listed(text))


def _origin(url: str) -> str:
    """Return a URL's origin as sent by browsers: lower case, no default port, no path."""
    wrong = ValueError(f"{url} is no origin: write https://dashboard.example.com, and no wildcard")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in {"http", "https"} or not host or "*" in host or parts.username is not None:
        raise wrong
    shown = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}" + ("" if port in {None, usual} else f":{port}")


def _minutes(text: str) -> tuple[int, ...]:
    try:
        found = [int(part) for part in _listed(text)]
    except ValueError:
        found = [0]
    if any(not 1 <= minutes <= _LONGEST_RUN for minutes in found):
        raise ValueError("write whole minutes from 1 to 43200, such as 10,2, or leave it empty")
    return tuple(found)


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part, strict=False) for part in _listed(text))


def load() -> Settings:
    """Read the environment. Raises StartupError naming each variable that is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise StartupError("bad_setting", f"The environment has settings that can't be used: {wrong}.") from None
    for name in ("jwt_secret", "encryption_key"):
        _check_secret(settings, name, needed=settings.node_env == "production")
    _check_secret(settings, "metrics_token", needed=False)
    return settings


def _check_secret(settings: Settings, name: str, *, needed: bool) -> None:
    value, variable = getattr(settings, name), name.upper()
    if needed and not value:
        raise StartupError("missing_secret", f"{variable} must be set when NODE_ENV is production.")
    if value and len(value) < _MIN_SECRET:
        raise StartupError("short_secret", f"{variable} is too short: use {_MIN_SECRET} random characters or more.")
    if needed and value in _WELL_KNOWN:
        raise StartupError(
            "well_known_secret", f"{variable} is the guide's example: use random characters of your own."
        )


def prepare_data_dir(settings: Settings) -> None:
    """Create the data folder. It and the controller's files in it become accessible to their owner only.

    Raises StartupError on failure.
    """
    folder = settings.moorage_data_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(folder, 0o700)
        for pattern in _OURS:
            for path in folder.glob(pattern):
                _close_to_others(path, 0o600)
    except OSError as error:
        raise StartupError(
            "data_dir",
            f"The data folder {folder} can't be made or used ({error.strerror}): "
            "set MOORAGE_DATA_DIR to a folder this user may write to.",
        ) from None


def _close_to_others(path: Path, mode: int) -> None:
    """Remove the permissions of group and others.

    Files of other users, symbolic links, and sticky folders such as /tmp stay unchanged.
    """
    found = path.lstat()
    kept = stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX or found.st_uid != os.geteuid()
    if found.st_mode & 0o077 and not kept:
        path.chmod(mode)
        log.warning("closed_to_others", path=str(path), mode_before=f"{stat.S_IMODE(found.st_mode):o}")


def secret(settings: Settings, name: Literal["jwt_secret", "encryption_key"]) -> str:
    """Return a secret from the environment, else from the data folder, where it is created on first use (mode 0600)."""
    kept = kept_secret(settings, name)
    if kept is not None:
        return kept
    secret_text = f"{secrets.token_urlsafe(48)}\n"
    write_atomic(settings.moorage_data_dir / name, secret_text.encode(), mode=0o600)
    return secret(settings, name)


def kept_secret(settings: Settings, name: Literal["jwt_secret", "encryption_key"]) -> str | None:
    """Return a secret like `secret`, but None instead of creating it. Raises StartupError."""
    given: str = getattr(settings, name)
    path = settings.moorage_data_dir / name
    if given or not path.exists():
        return given or None
    kept = path.read_text().strip()
    if len(kept) < _MIN_SECRET:
        raise StartupError("damaged_secret", f"{path} is damaged: restore it from a backup, or set {name.upper()}.")
    return kept
