"""sign in elsewhere, sign in again, narrow tokens.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "used_codes",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_used_codes")),
    )
    op.create_index(op.f("ix_used_codes_expires_at"), "used_codes", ["expires_at"])
    op.add_column("users", sa.Column("issuer", sa.String(), nullable=True))
    op.add_column("users", sa.Column("subject", sa.String(), nullable=True))
    op.add_column("users", sa.Column("groups", sa.JSON(), nullable=True))
    op.create_index("uq_users_issuer_subject", "users", ["issuer", "subject"], unique=True)
    op.add_column("access_tokens", sa.Column("scopes", sa.JSON(), nullable=True))
    op.add_column("access_tokens", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "web_sessions", sa.Column("authenticated_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("web_sessions", sa.Column("provider", sa.String(), nullable=True))
    op.add_column("web_sessions", sa.Column("sid", sa.String(), nullable=True))
    op.add_column("web_sessions", sa.Column("data_key", sa.LargeBinary(), nullable=True))
    op.add_column("web_sessions", sa.Column("id_token", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_web_sessions_sid"), "web_sessions", ["sid"])
    op.add_column(
        "approval_requests",
        sa.Column("step_up", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )


def downgrade() -> None:
    with op.batch_alter_table("approval_requests") as batch:
        batch.drop_column("step_up")
    op.drop_index(op.f("ix_web_sessions_sid"), "web_sessions")
    with op.batch_alter_table("web_sessions") as batch:
        for name in ("id_token", "data_key", "sid", "provider", "authenticated_at"):
            batch.drop_column(name)
    with op.batch_alter_table("access_tokens") as batch:
        batch.drop_column("used_at")
        batch.drop_column("scopes")
    op.drop_index("uq_users_issuer_subject", "users")
    with op.batch_alter_table("users") as batch:
        for name in ("groups", "subject", "issuer"):
            batch.drop_column(name)
    op.drop_index(op.f("ix_used_codes_expires_at"), "used_codes")
    op.drop_table("used_codes")
