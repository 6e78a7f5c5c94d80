"""Deadlines have numbers, warnings and a start, and are known to agents.

Revision 0009. The start of an existing run is estimated as its deadline minus its timeout.
"""

import time
from datetime import timedelta

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_apps = sa.table(
    "apps",
    sa.column("id", sa.Uuid()),
    sa.column("run_timeout", sa.Integer()),
    sa.column("started_at", sa.DateTime(timezone=True)),
    sa.column("stop_at", sa.DateTime(timezone=True)),
    sa.column("run_began_at", sa.DateTime(timezone=True)),
    sa.column("deadline_number", sa.BigInteger()),
)


def upgrade() -> None:
    """Add the columns, and fill them for the existing runs."""
    with op.batch_alter_table("apps") as table:
        table.add_column(sa.Column("run_began_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("deadline_number", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("warn_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("overdue", sa.Boolean(), nullable=False, server_default=sa.text("false")))
        table.create_index("ix_apps_warn_at", ["warn_at"])
    with op.batch_alter_table("servers") as table:
        table.add_column(sa.Column("keeps_deadlines", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    connection = op.get_bind()
    number = int(time.time() * 1000)
    for row in connection.execute(sa.select(_apps).where(_apps.c.started_at.is_not(None))).all():
        began_at = row.stop_at - timedelta(minutes=row.run_timeout)
        values = {"run_began_at": began_at, "deadline_number": number}
        connection.execute(_apps.update().where(_apps.c.id == row.id).values(values))


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("servers") as table:
        table.drop_column("keeps_deadlines")
    with op.batch_alter_table("apps") as table:
        table.drop_index("ix_apps_warn_at")
        for name in ("overdue", "warn_at", "deadline_number", "run_began_at"):
            table.drop_column(name)
