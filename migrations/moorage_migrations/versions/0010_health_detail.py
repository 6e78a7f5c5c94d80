"""Apps have the reason of their health, and their last result.

Revision 0010. Both are filled in when the apps are observed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("apps") as table:
        table.add_column(sa.Column("health_detail", sa.Text(), nullable=True))
        table.add_column(sa.Column("last_result", sa.String(50), nullable=True))


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("apps") as table:
        table.drop_column("last_result")
        table.drop_column("health_detail")
