"""An app may say which compose files are its own.

Revision 0011. Those that are there say none: Compose looks for them, as before.
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
    """Take it away again."""
    with op.batch_alter_table("apps") as table:
        table.drop_column("compose_files")
