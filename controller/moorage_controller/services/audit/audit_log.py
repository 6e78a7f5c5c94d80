"""Reading the audit log: everything for an admin, his own entries for a user."""

from collections.abc import Sequence
from dataclasses import replace

from moorage_controller.auth.roles import Principal, Role
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import audit as store
from moorage_controller.store.tables.audit import AuditEntry, AuditFilter


class AuditLog:
    """The audit log's reading side."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, principal: Principal, wanted: AuditFilter, limit: int, offset: int
    ) -> tuple[Sequence[AuditEntry], int]:
        """Return a page, the newest entry first, and how many entries there are. A user asks for his own, always.

        Another user's id gives him nothing rather than an error: his view has no such entries.
        """
        if principal.role is not Role.ADMIN:
            if wanted.user_id not in {None, principal.user_id}:
                return [], 0
            wanted = replace(wanted, user_id=principal.user_id)
        async with self._database.read() as connection:
            return await store.page(connection, wanted=wanted, limit=limit, offset=offset)
