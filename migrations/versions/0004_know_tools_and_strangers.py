"""know new, gone and refused tools, what models were shown of them, and unknown servers.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("servers", sa.Column("listed_at", _TIME, nullable=True))
    op.add_column("tool_definitions", sa.Column("source", sa.String(), nullable=True))
    op.add_column("tool_definitions", sa.Column("signs", sa.JSON(), nullable=True))
    op.add_column("tool_definitions", sa.Column("gone_at", _TIME, nullable=True))
    op.add_column("tool_definitions", sa.Column("refused_at", _TIME, nullable=True))
    op.add_column("tool_definitions", sa.Column("refused_by", sa.String(), nullable=True))
    op.add_column("exchanges", sa.Column("shown", sa.JSON(), nullable=True))
    # What was listed before is known: from now on only a person pins what is new there.
    op.execute(
        "UPDATE servers SET listed_at = (SELECT max(listed_at) FROM tool_definitions"
        " WHERE tool_definitions.server_id = servers.id)"
    )
    op.create_table(
        "unknown_servers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("app_name", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("first_seen", _TIME, nullable=False),
        sa.Column("last_seen", _TIME, nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unknown_servers")),
        sa.UniqueConstraint("app_id", "address", name="uq_unknown_servers_app_id_address"),
    )


def downgrade() -> None:
    op.drop_table("unknown_servers")
    # Nothing stands in the old tables for what people must not lose: a tool that was refused, new
    # or gone is one that changed, whose calls are held.
    op.execute(
        "UPDATE tool_definitions SET pinned_digest = ''"
        " WHERE refused_at IS NOT NULL OR gone_at IS NOT NULL"
    )
    for table, columns in (
        ("exchanges", ("shown",)),
        ("tool_definitions", ("refused_by", "refused_at", "gone_at", "signs", "source")),
        ("servers", ("listed_at",)),
    ):
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column)
