"""Where a server's agent keeps its journal, and why a server with an agent is reached by SSH.

Revision 0006. Both are null until the host was seen.
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
    """Drop them; they are told anew by the next look at each host."""
    # Not in a batch: that would make the table anew, and take the references to its rows along.
    op.drop_column("servers", "fallback")
    op.drop_column("servers", "agent_journal")
