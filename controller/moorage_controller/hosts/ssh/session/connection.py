"""One login to a host: who answers there, and whether it is who it was."""

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
"""Fifteen seconds without a sign of life, and some: then a connection is taken for lost."""
_SHOW_SECONDS = 10.0
_FIRST_SIGHT = "^ssh-ed25519"
"""Asked for first, as OpenSSH does: some dropbears crash when an RSA key is asked of them that they haven't got."""
_NOT_REACHED = (asyncssh.Error, OSError, ValueError)
"""What a connect raises: SSH's own, the network's, and what is said of an address that can't be one."""


@dataclass(frozen=True, slots=True)
class SshTarget:
    """Where a server is reached.

    `host_key` is the key that was pinned when the server was read (type and base64, as in known_hosts), empty for none:
    a login asks by itself for the one that counts. `journal` is the folder of the journal of the host's agent, empty
    where it has none: no other may be used then.
    `credentials` changes whenever what opens the host does.
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
        """The address as people write it."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SshAccess:
    """What the database has for a login. `host_key` is the pinned one, empty for none; `credentials` None for none."""

    credentials: SshCredentials | None
    host_key: str = ""


AccessOf = Callable[[UUID], Awaitable[SshAccess]]
"""Returns what opens a server, as it is stored now."""

PinHostKey = Callable[[SshTarget, str], Awaitable[str]]
"""Stores the key of a server that has none yet, and returns the one that is stored: that of whoever came first.

Raises HostUnreachableError where the server is at another address now."""


class _Client(asyncssh.SSHClient):
    """Gives what opens the host to nobody but the holder of the key that is pinned at that moment."""

    def __init__(self, target: SshTarget, access: SshAccess, keys: list[asyncssh.SSHKey], pin: PinHostKey) -> None:
        self._target = target
        self._pin = pin
        self._keys = keys
        self._password = access.credentials.password if access.credentials else ""
        self.pinned = access.host_key
        self.shown = ""
        self.refused: Exception | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Take the pinned key, and any where none is pinned yet: nothing is given away before `confirm`."""
        del host, addr, port
        self.shown = key_text(key)
        return not self.pinned or self.shown == self.pinned

    async def public_key_auth_requested(self) -> asyncssh.SSHKey | None:
        """Return a key that wasn't tried yet."""
        await self.confirm()
        return self._keys.pop() if self._keys else None

    async def password(self) -> str:
        """Return the password."""
        await self.confirm()
        return self._password

    async def confirm(self) -> None:
        """Pin the key that the host showed, where none is. Raises HostUnreachableError where another one is pinned."""
        try:
            self.pinned = await self._pin(self._target, self.shown)
        except Exception as error:
            # Noted, since asyncssh may make another error of it.
            self.refused = error
            raise
        if self.shown != self.pinned:
            self.refused = _changed(self._target, self.pinned, self.shown)
            raise self.refused


async def log_in(
    target: SshTarget, access: SshAccess, pin: PinHostKey, *, seconds: float
) -> tuple[asyncssh.SSHClientConnection, str]:
    """Connect and authenticate; returns the connection and the host's pinned key. Raises HostUnreachableError."""
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
        # A host may let in without asking for anything, and a key may have been accepted just now.
        await client.confirm()
    except BaseException:
        connection.abort()
        raise
    return connection, client.pinned


def key_text(key: asyncssh.SSHKey) -> str:
    """Return a public key as known_hosts has it: type and base64."""
    return " ".join(key.export_public_key().decode().split()[:2])


async def show_key(target: SshTarget) -> str:
    """Ask a host for the key it shows now, without logging in. Raises HostUnreachableError."""
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
    """Return options that take nothing from the controller's own account: no agent, no keys, no configuration.

    They hold nothing that opens a host: asyncssh asks the client for that.
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
    """Return how a host must prove the pinned key: one that has several would show another otherwise."""
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
