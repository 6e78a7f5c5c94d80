"""An app may name its own compose files.

Revision 0011. Existing apps name none: Compose looks for the default names, as before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("apps") as table:
        table.add_column(sa.Column("compose_files", sa.Text(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("apps") as table:
        table.drop_column("compose_files")
