"""Installing and removing an agent are operations, too; an enrolment over SSH needs no join token.

Revision 0007. `operations.request` is the request of such an operation (JSON).
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_IN_FLIGHT = "state IN ('queued', 'running')"
_APPS = "kind IN ('up', 'down', 'restart')"
_AGENTS = "kind IN ('agent_install', 'agent_uninstall')"
_ALL = "kind IN ('up', 'down', 'restart', 'agent_install', 'agent_uninstall')"
_IN_FLIGHT_ON_A_SERVER = f"{_IN_FLIGHT} AND {_AGENTS}"


def upgrade() -> None:
    """Allow the new kinds, one operation of them at a time per server."""
    _allow(_ALL)
    op.add_column("operations", sa.Column("request", sa.Text(), nullable=True))
    op.create_index(
        "uq_operations_agent_in_flight",
        "operations",
        ["server_id"],
        unique=True,
        sqlite_where=sa.text(_IN_FLIGHT_ON_A_SERVER),
        postgresql_where=sa.text(_IN_FLIGHT_ON_A_SERVER),
    )
    with op.batch_alter_table("enrollments") as table:
        table.alter_column("token_id", existing_type=sa.Uuid(), nullable=True)


def downgrade() -> None:
    """Delete rows unknown to the older release: operations on agents, and enrolments without a token."""
    op.execute("DELETE FROM enrollments WHERE token_id IS NULL")
    with op.batch_alter_table("enrollments") as table:
        table.alter_column("token_id", existing_type=sa.Uuid(), nullable=False)
    op.drop_index("uq_operations_agent_in_flight", "operations")
    operations = sa.table("operations", sa.column("kind"))
    op.execute(operations.delete().where(operations.c.kind.in_(["agent_install", "agent_uninstall"])))
    op.drop_column("operations", "request")
    _allow(_APPS)


def _allow(kinds: str) -> None:
    # SQLite recreates the table; nothing references its rows.
    with op.batch_alter_table("operations") as table:
        table.drop_constraint(op.f("ck_operations_kind"), type_="check")
        table.create_check_constraint(op.f("ck_operations_kind"), kinds)
