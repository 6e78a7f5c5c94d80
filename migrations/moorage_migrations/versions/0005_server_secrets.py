"""The public key that a host is known by over SSH.

Revision 0005. Null until a host is met for the first time.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column("servers", sa.Column("host_key", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it; the newer release meets each host anew."""
    # Not in a batch: that would make the table anew, and take the references to its rows along.
    op.execute("ALTER TABLE servers DROP COLUMN host_key")
