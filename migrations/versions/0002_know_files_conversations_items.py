"""know files, conversations and the items around a hold.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_HANDED = sa.text("exchange_id <> ''")
_OPEN = sa.text("state IN ('forwarding', 'holding', 'sending')")


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("conversation_id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name=op.f("pk_conversations")),
    )
    op.create_table(
        "uploaded_files",
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_uploaded_files")),
    )
    op.create_index(op.f("ix_uploaded_files_app_id"), "uploaded_files", ["app_id"])
    op.add_column("apps", sa.Column("identity", sa.JSON(), nullable=True))
    op.add_column("exchanges", sa.Column("idempotency", sa.String(), nullable=True))
    op.add_column("exchanges", sa.Column("conversation_id", sa.String(), nullable=True))
    op.add_column("exchanges", sa.Column("log", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_exchanges_conversation_id"), "exchanges", ["conversation_id"])
    op.create_index(
        "uq_exchanges_open_conversation",
        "exchanges",
        ["conversation_id"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.add_column("handed_items", sa.Column("hidden", sa.LargeBinary(), nullable=True))
    op.drop_index(op.f("ix_handed_items_exchange_id"), "handed_items")
    op.create_index(
        "ix_handed_items_exchange_id",
        "handed_items",
        ["exchange_id"],
        sqlite_where=_HANDED,
        postgresql_where=_HANDED,
    )


def downgrade() -> None:
    op.drop_index("ix_handed_items_exchange_id", "handed_items")
    op.create_index(op.f("ix_handed_items_exchange_id"), "handed_items", ["exchange_id"])
    op.drop_index("uq_exchanges_open_conversation", "exchanges")
    op.drop_index(op.f("ix_exchanges_conversation_id"), "exchanges")
    for table, column in (
        ("handed_items", "hidden"),
        ("exchanges", "log"),
        ("exchanges", "conversation_id"),
        ("exchanges", "idempotency"),
        ("apps", "identity"),
    ):
        with op.batch_alter_table(table) as batch:
            batch.drop_column(column)
    op.drop_table("uploaded_files")
    op.drop_table("conversations")
