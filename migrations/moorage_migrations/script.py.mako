"""${message}.

Revision: ${up_revision}, after ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Say what is added, and what becomes of rows that are there."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Say what is taken away, and what of it is lost."""
    ${downgrades if downgrades else "pass"}
