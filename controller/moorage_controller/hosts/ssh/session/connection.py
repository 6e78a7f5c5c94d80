"""SSH login to a host, with verification of its host key."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID

import asyncssh

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.credentials import SshCredentials, fingerprint

_KEEPALIVE_SECONDS = 5.0
_KEEPALIVES_MISSED = 3
"""A connection counts as lost after fifteen seconds without a reply, plus a margin."""
_SHOW_SECONDS = 10.0
_FIRST_SIGHT = "^ssh-ed25519"
"""Preferred host key type, as in OpenSSH: some dropbears crash on a request for an RSA key that they don't have."""
_NOT_REACHED = (asyncssh.Error, OSError, ValueError)
"""Errors of a connect: SSH protocol errors, network errors, and ValueError for an invalid address."""


@dataclass(frozen=True, slots=True)
class SshTarget:
    """The SSH address of a server.

    `host_key` is the key that was pinned when the server was read (type and base64, as in known_hosts), empty for none;
    each login fetches the current one itself. `journal` is the folder of the journal of the host's agent, empty if
    there is no agent; if it is set, no other journal may be used. `credentials` changes with the stored credentials.
    """

    server_id: UUID
    address: str
    port: int
    username: str
    host_key: str = ""
    journal: str = ""
    credentials: str = ""

    @property
    def place(self) -> str:
        """The address as HOST:PORT, for sentences and logs."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SshAccess:
    """Login data from the database. `host_key` is the pinned key or empty; `credentials` may be None."""

    credentials: SshCredentials | None
    host_key: str = ""


AccessOf = Callable[[UUID], Awaitable[SshAccess]]
"""Returns a server's current login data."""

PinHostKey = Callable[[SshTarget, str], Awaitable[str]]
"""Pins the key of a server without a pinned key, and returns the pinned key; the first one wins.

Raises HostUnreachableError if the server's address has changed."""


class _Client(asyncssh.SSHClient):
    """Sends credentials only to a host that holds the key that is pinned at that moment."""

    def __init__(self, target: SshTarget, access: SshAccess, keys: list[asyncssh.SSHKey], pin: PinHostKey) -> None:
        self._target = target
        self._pin = pin
        self._keys = keys
        self._password = access.credentials.password if access.credentials else ""
        self.pinned = access.host_key
        self.shown = ""
        self.refused: Exception | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Accept the pinned key, or any key if none is pinned: no credentials are sent before `confirm`."""
        del host, addr, port
        self.shown = key_text(key)
        return not self.pinned or self.shown == self.pinned

    async def public_key_auth_requested(self) -> asyncssh.SSHKey | None:
        """Return the next untried private key."""
        await self.confirm()
        return self._keys.pop() if self._keys else None

    async def password(self) -> str:
        """Return the password."""
        await self.confirm()
        return self._password

    async def confirm(self) -> None:
        """Pin the presented host key if none is pinned. Raises HostUnreachableError if a different one is pinned."""
        try:
            self.pinned = await self._pin(self._target, self.shown)
        except Exception as error:
            # Kept, because asyncssh may convert it into another error.
            self.refused = error
            raise
        if self.shown != self.pinned:
            self.refused = _changed(self._target, self.pinned, self.shown)
            raise self.refused


async def log_in(
    target: SshTarget, access: SshAccess, pin: PinHostKey, *, seconds: float
) -> tuple[asyncssh.SSHClientConnection, str]:
    """Connect and authenticate; return the connection and the host's pinned key. Raises HostUnreachableError."""
    credentials = access.credentials
    if credentials is None or not (credentials.private_key or credentials.password):
        raise HostUnreachableError(
            "This server has neither an agent nor an SSH key or password: enrol an agent, or add a key.",
            "no_credentials",
        )
    client = _Client(target, access, await asyncio.to_thread(_keys, credentials), pin)
    options = await asyncio.to_thread(_options, target, client, by_password=bool(credentials.password))
    try:
        async with asyncio.timeout(seconds):
            connection, _ = await asyncssh.create_connection(
                lambda: client, target.address, target.port, options=options
            )
    except Exception as error:
        if client.refused is not None:
            raise client.refused from None
        if isinstance(error, _NOT_REACHED):
            _raise(target, client, error, seconds)
        raise
    try:
        # A host may accept a login without authentication, and an admin may just have accepted another key.
        await client.confirm()
    except BaseException:
        connection.abort()
        raise
    return connection, client.pinned


def key_text(key: asyncssh.SSHKey) -> str:
    """Return a public key in known_hosts form: type and base64."""
    return " ".join(key.export_public_key().decode().split()[:2])


async def show_key(target: SshTarget) -> str:
    """Fetch the key that a host presents now, without a login. Raises HostUnreachableError."""
    try:
        async with asyncio.timeout(_SHOW_SECONDS):
            key = await asyncssh.get_server_host_key(
                target.address, target.port, config=None, server_host_key_algs=_FIRST_SIGHT
            )
    except _NOT_REACHED as error:
        raise HostUnreachableError(_sentence(target, error, _SHOW_SECONDS)) from None
    if key is None:
        raise HostUnreachableError(f"{target.place} showed no SSH host key.")
    return key_text(key)


def _keys(credentials: SshCredentials) -> list[asyncssh.SSHKey]:
    if not credentials.private_key:
        return []
    try:
        return [asyncssh.import_private_key(credentials.private_key, credentials.passphrase or None)]
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise HostUnreachableError(
            f"The server's SSH key can't be read ({error}): store the key and its passphrase again.",
            "ssh_key_unreadable",
        ) from None


def _options(target: SshTarget, client: _Client, *, by_password: bool) -> asyncssh.SSHClientConnectionOptions:
    """Return options that use nothing of the controller's own account: no SSH agent, keys or configuration.

    They contain no credentials: asyncssh requests those from the client object.
    """
    return asyncssh.SSHClientConnectionOptions(
        username=target.username,
        client_keys=None,
        password=client.password if by_password else None,
        known_hosts=([], [], []),
        agent_path=None,
        config=None,
        x509_trusted_certs=None,
        keepalive_interval=_KEEPALIVE_SECONDS,
        keepalive_count_max=_KEEPALIVES_MISSED,
        connect_timeout=None,
        login_timeout=None,
        preferred_auth="publickey,password,keyboard-interactive",
        server_host_key_algs=_algorithms(client.pinned) if client.pinned else _FIRST_SIGHT,
    )


def _algorithms(host_key: str) -> list[str]:
    """Return the algorithms for the pinned key's type: a host with several keys could present another otherwise."""
    kind = host_key.split(maxsplit=1)[0]
    return ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]


def _changed(target: SshTarget, pinned: str, shown: str) -> HostUnreachableError:
    seen = f"it now shows {fingerprint(shown)}" if shown else "it now shows a key of another type"
    return HostUnreachableError(
        f"The SSH host key of {target.place} has changed ({seen}, and not {fingerprint(pinned)}): make sure on the "
        "host that this is right; then an admin can accept it.",
        "host_key_changed",
    )


def _raise(target: SshTarget, client: _Client, error: Exception, seconds: float) -> NoReturn:
    if client.pinned and (
        isinstance(error, asyncssh.HostKeyNotVerifiable)
        or (isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(error))
    ):
        raise _changed(target, client.pinned, client.shown) from None
    if isinstance(error, asyncssh.PermissionDenied):
        raise HostUnreachableError(
            f"{target.place} doesn't let {target.username} in: check the user's name, and that the stored key or "
            "password is right and allowed on the host.",
            "ssh_login_refused",
        ) from None
    raise HostUnreachableError(_sentence(target, error, seconds)) from None


def _sentence(target: SshTarget, error: Exception, seconds: float) -> str:
    match error:
        case TimeoutError():
            return f"{target.place} did not answer within {seconds:.0f} seconds by SSH: see that the host is up."
        case socket.gaierror():
            return f"There is no address for {target.address}: check the server's address."
        case asyncssh.ConnectionLost() | ConnectionResetError() | BrokenPipeError():
            return f"{target.place} closed the SSH connection before the login was over: it may be overloaded."
        case asyncssh.Error():
            reason = re.sub(r"[\W_]*$", "", error.reason)
            return f"The SSH login to {target.place} failed: {reason}."
        case OSError():
            return f"{target.place} can't be reached by SSH: {error.strerror or error}."
    return f"The SSH login to {target.place} failed ({type(error).__name__})."
