"""Reading the audit log: all entries for an admin, their own entries for a user."""

from collections.abc import Sequence
from dataclasses import replace

from moorage_controller.auth.roles import Principal, Role
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import audit as store
from moorage_controller.store.tables.audit import AuditEntry, AuditFilter


class AuditLog:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, principal: Principal, wanted: AuditFilter, limit: int, offset: int
    ) -> tuple[Sequence[AuditEntry], int]:
        """Return a page, newest entry first, and the total count. A user sees only their own entries.

        For another user's ID a user gets an empty page, not an error: their view has no such entries.
        """
        if principal.role is not Role.ADMIN:
            if wanted.user_id not in {None, principal.user_id}:
                return [], 0
            wanted = replace(wanted, user_id=principal.user_id)
        async with self._database.read() as connection:
            return await store.page(connection, wanted=wanted, limit=limit, offset=offset)
