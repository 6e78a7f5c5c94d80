"""Bodies and replies about servers. SSH credentials are write-only."""

import re
from ipaddress import ip_address
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from moorage_controller.api.schemas import CdPath, Endpoint, Name, Number, OneLine, Schema

_MOST_KEY = 16 * 1024
_MOST_SECRET = 1024
_ADDRESS = re.compile(r"[\w.:][\w.:%-]*")
"""Letters of any script: the resolver supports them. A leading dash would be parsed as an option."""
_UNTYPED = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and lone surrogates, which JSON can contain."""
SECRETS = {"ssh_private_key": "private_key", "ssh_passphrase": "passphrase", "ssh_password": "password"}
"""The write-only fields, and their names in SshCredentials."""


def _address(address: str) -> str:
    wrong = ValueError("It must be a host name or an IP address, without user, port or brackets.")
    if not _ADDRESS.fullmatch(address):
        raise wrong
    if ":" in address or "%" in address:
        try:
            ip_address(address)
        except ValueError:
            raise wrong from None
    return address


def _ssh_user(user: str) -> str:
    if user.startswith("-") or not user.isprintable() or any(character.isspace() for character in user):
        raise ValueError("It must be a user's name: no spaces, no control characters, no dash in front.")
    return user


def _secret_line(secret: SecretStr) -> SecretStr:
    if _UNTYPED.search(secret.get_secret_value()):
        raise ValueError("It must be one line of text.")
    return secret


Address = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255), OneLine, AfterValidator(_address)
]
SshUser = Annotated[str, StringConstraints(max_length=255), AfterValidator(_ssh_user)]
Port = Annotated[int, Number, Field(ge=1, le=65_535)]
_HOW = "Never shown. Absent or empty: unchanged; null: dropped"
PrivateKey = Annotated[
    SecretStr,
    Field(max_length=_MOST_KEY, description=f"In OpenSSH or PEM form. {_HOW}, and the passphrase with it."),
]
Secret = Annotated[SecretStr, Field(max_length=_MOST_SECRET, description=f"{_HOW}."), AfterValidator(_secret_line)]


class SshSecretsIn(Schema):
    """SSH credentials, write-only. Absent or empty: unchanged; null: removed."""

    ssh_private_key: PrivateKey | None = None
    ssh_passphrase: Secret | None = None
    ssh_password: Secret | None = None

    def secrets(self) -> dict[str, str | None]:
        """Return the changes by field name of SshCredentials; None removes the value."""
        sent = {name: getattr(self, name) for name in SECRETS if name in self.model_fields_set}
        plain = {name: None if secret is None else secret.get_secret_value() for name, secret in sent.items()}
        return {SECRETS[name]: value for name, value in plain.items() if value != ""}


class ServerIn(SshSecretsIn):
    """POST /api/servers."""

    name: Name
    address: Address
    ssh_user: SshUser | None = None
    ssh_port: Port = 22
    api_endpoint: Endpoint | None = None


class ServerChanges(SshSecretsIn):
    """PUT /api/servers/{id}: absent fields stay unchanged."""

    name: Name | None = None
    address: Address | None = None
    ssh_user: SshUser | None = None
    ssh_port: Port | None = None
    api_endpoint: Endpoint | None = None


class ServerOut(Schema):
    """A server."""

    id: UUID
    name: str
    address: str
    ssh_user: str | None
    ssh_port: int
    status: str
    running_apps_count: int
    last_checked: int | None
    connection: str
    api_endpoint: str | None
    agent_version: str | None
    status_detail: str | None
    running_containers: int
    uptime: int | None
    has_credentials: bool
    keeps_deadlines: bool
    """Its agent keeps the deadlines of its apps, and stops them itself if no controller does."""
    host_key_fingerprint: str | None


class ServerStatusOut(Schema):
    """GET /api/servers/{id}/status: the result of a new check."""

    status: str
    running_containers: int
    uptime: int | None
    last_checked: int | None


class AgentIn(Schema):
    """POST /api/servers/{id}/agent: the agent's port, and the directories below which apps may be.

    Without `allowRoots` an existing policy on the host stays; without a policy, the folders of the server's apps apply,
    or /srv.
    """

    port: Port = 7443
    allow_roots: Annotated[list[CdPath], Field(max_length=50, default_factory=list)]


class HostKeyIn(Schema):
    """POST /api/servers/{id}/host-key: the fingerprint of the host's current key, in the form of `ssh-keygen -l`."""

    fingerprint: Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]


class ServerTestOut(Schema):
    """POST /api/servers/{id}/test: the result of a new check; `message` is a sentence."""

    status: str
    running_apps_count: int
    running_containers: int
    last_checked: int | None
    message: str


class RefreshedOut(Schema):
    """POST /api/servers/refresh: all servers, sorted by name, after a check of each."""

    message: str
    servers: list[ServerOut]
