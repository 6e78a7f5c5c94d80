"""SSH credentials: validate, encrypt, and decrypt them for a connection."""

import asyncio
from collections.abc import Mapping
from dataclasses import fields, replace
from uuid import UUID

from moorage_controller.errors import ConflictError, InvalidError, NotFoundError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.private_keys import BadKeyError, checked
from moorage_controller.hosts.ssh.session.connection import SshAccess
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.tables import servers as store

_COLUMN = "servers.encrypted_credentials"
_NAMES = frozenset(field.name for field in fields(SshCredentials))
_FIELDS = {"private_key": "sshPrivateKey", "passphrase": "sshPassphrase", "password": "sshPassword"}
"""Field names of the API."""


class Credentials:
    """Reads and creates values of `servers.encrypted_credentials`."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    async def access_of(self, server_id: UUID) -> SshAccess:
        """Return the credentials and pinned host key of a server; call it at each connect, and don't keep the result.

        Raises NotFoundError; UndecryptableError with a sentence for an admin.
        """
        async with self._database.read() as connection:
            server = await store.get(connection, server_id)
        if server is None:
            raise NotFoundError("server_not_found", "There is no server of that id.")
        return SshAccess(self._open(server_id, server.encrypted_credentials), server.host_key or "")

    async def changed(
        self, server_id: UUID, sealed: Ciphertext | None, changes: Mapping[str, str | None]
    ) -> Ciphertext | None:
        """Return the encrypted credentials with changes applied: None drops one; dropping a key drops its passphrase.

        Raises InvalidError for an unusable key; ConflictError if the unchanged ones are needed and can't be decrypted.
        """
        if not changes:
            return sealed
        wanted = {"passphrase": None, **changes} if "private_key" in changes and not changes["private_key"] else changes
        old = SshCredentials()
        if set(wanted) != _NAMES:
            old = self._open_or_refuse(server_id, sealed)
        new = replace(old, **{name: value or "" for name, value in wanted.items()})
        if set(wanted) & {"private_key", "passphrase"}:
            try:
                new = await asyncio.to_thread(checked, new)
            except BadKeyError as error:
                raise InvalidError({_FIELDS[error.field]: error.sentence}) from None
        if new == SshCredentials():
            return None
        return self._keyring.seal(new.to_text(), column=_COLUMN, row=str(server_id))

    def _open(self, server_id: UUID, sealed: Ciphertext | None) -> SshCredentials | None:
        if sealed is None:
            return None
        return SshCredentials.from_text(self._keyring.open(sealed, column=_COLUMN, row=str(server_id)))

    def _open_or_refuse(self, server_id: UUID, sealed: Ciphertext | None) -> SshCredentials:
        try:
            return self._open(server_id, sealed) or SshCredentials()
        except UndecryptableError as error:
            again = "Or send sshPrivateKey, sshPassphrase and sshPassword anew, null for those that there are not."
            raise ConflictError("undecryptable_secret", f"{error} {again}") from None
