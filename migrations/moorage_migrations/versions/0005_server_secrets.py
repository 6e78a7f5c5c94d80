"""The SSH host key of a server.

Revision 0005. Null until the first connection to the host.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column("servers", sa.Column("host_key", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it; after another upgrade each host's key is recorded again on the first connection."""
    # Not in a batch: that would recreate the table, and cascade to the rows that reference it.
    op.execute("ALTER TABLE servers DROP COLUMN host_key")
