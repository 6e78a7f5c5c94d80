"""Running operations' output is stored, every change has a number, and each operation has its driving controller.

Revision 0008. `operations.output`, the last 64 KiB of an operation that had ended, becomes rows of `operation_output`.
"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_KEPT = 64 * 1024

_operations = sa.table("operations", sa.column("id", sa.Uuid()), sa.column("output", sa.Text()))
_output = sa.table(
    "operation_output",
    sa.column("operation_id", sa.Uuid()),
    sa.column("start", sa.BigInteger()),
    sa.column("stop", sa.BigInteger()),
    sa.column("data", sa.LargeBinary()),
)


def upgrade() -> None:
    """Create the tables, and migrate the existing output."""
    op.create_table(
        "operation_output",
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["operation_id"],
            ["operations.id"],
            name=op.f("fk_operation_output_operation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("operation_id", "start", name=op.f("pk_operation_output")),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(_operations).where(_operations.c.output != "")).all():
        data = row.output.encode()
        connection.execute(_output.insert().values(operation_id=row.id, start=0, stop=len(data), data=data))
    with op.batch_alter_table("operations") as table:
        table.drop_column("output")
        table.add_column(sa.Column("driver", sa.Uuid(), nullable=True))
    op.create_table(
        "controllers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_controllers")),
    )
    changes = op.create_table(
        "changes",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_changes")),
    )
    # From the time: a client with a number of another database, or from before a restore, is told to start again.
    op.bulk_insert(changes, [{"number": time.time_ns() // 1_000_000, "kind": "begun", "resource_id": None}])


def downgrade() -> None:
    """Keep the last 64 KiB of each operation's output, as the older release does."""
    op.drop_table("changes")
    op.drop_table("controllers")
    with op.batch_alter_table("operations") as table:
        table.drop_column("driver")
        table.add_column(sa.Column("output", sa.Text(), nullable=False, server_default=""))
    connection = op.get_bind()
    pieces: dict[object, bytes] = {}
    for row in connection.execute(sa.select(_output).order_by(_output.c.operation_id, _output.c.start)):
        pieces[row.operation_id] = (pieces.get(row.operation_id, b"") + row.data)[-_KEPT:]
    for operation_id, data in pieces.items():
        text = data.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        connection.execute(_operations.update().where(_operations.c.id == operation_id).values(output=text))
    op.drop_table("operation_output")
