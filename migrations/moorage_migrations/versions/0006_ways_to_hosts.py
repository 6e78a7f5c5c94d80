"""The folder of an agent's journal, and the reason why a server with an agent is reached by SSH.

Revision 0006. Both are null until the host has been polled.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("servers", sa.Column("agent_journal", sa.Text(), nullable=True))
    op.add_column("servers", sa.Column("fallback", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop them; after another upgrade the next poll of each host fills them again."""
    # Not in a batch: that would recreate the table, and cascade to the rows that reference it.
    op.drop_column("servers", "fallback")
    op.drop_column("servers", "agent_journal")
