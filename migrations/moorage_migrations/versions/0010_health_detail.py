"""Apps say why their health is what it is, and what they came to.

Revision 0010. Both are filled in as soon as the apps are seen.
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
    """Take the columns away again."""
    with op.batch_alter_table("apps") as table:
        table.drop_column("last_result")
        table.drop_column("health_detail")
