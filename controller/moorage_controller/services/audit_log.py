"""Reading the audit log: everything for an admin, his own entries for a user."""

from collections.abc import Sequence

from moorage_controller.auth.roles import Principal, Role
from moorage_controller.store import audit as store
from moorage_controller.store.audit import AuditEntry
from moorage_controller.store.engine import Database


class AuditLog:
    """The audit log's reading side."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, principal: Principal, limit: int, offset: int) -> tuple[Sequence[AuditEntry], int]:
        """Return a page, the newest entry first, and how many entries the caller may see in all."""
        own = None if principal.role is Role.ADMIN else principal.user_id
        async with self._database.read() as connection:
            return await store.page(connection, user_id=own, limit=limit, offset=offset)
