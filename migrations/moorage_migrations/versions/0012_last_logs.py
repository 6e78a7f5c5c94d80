"""The last log lines of containers removed by a stop are stored.

Revision 0012.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "last_logs",
        sa.Column("app_id", sa.Uuid(), nullable=False),
        sa.Column("service", sa.String(255), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lines", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name=op.f("fk_last_logs_app_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("app_id", "service", name=op.f("pk_last_logs")),
    )
    op.create_index("ix_last_logs_stopped_at", "last_logs", ["stopped_at"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("last_logs")
