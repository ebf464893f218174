"""share the work and remember decisions.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NOT_OVER = sa.text("state IN ('forwarding', 'holding', 'sending')")
_UNCLEAR = sa.text("execution IN ('sending', 'unknown')")
_STANDS = sa.text("withdrawn_at IS NULL")
_GOES_ON = sa.text("ended_at IS NULL")
_OPEN = sa.text("closed_at IS NULL")
_NOT_ASKED_ANEW = sa.text("superseded_by IS NULL")
_SETTLED = sa.text("settled_at IS NOT NULL")
_KEYED = sa.text("idempotency IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "alarms",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("app_name", sa.String(), nullable=False),
        sa.Column("exchange_id", sa.String(), nullable=True),
        sa.Column("approval_id", sa.String(), nullable=True),
        sa.Column("server_label", sa.String(), nullable=True),
        sa.Column("tool", sa.String(), nullable=True),
        sa.Column("raised_by", sa.String(), nullable=True),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_by", sa.String(), nullable=True),
        sa.Column("note", sa.LargeBinary(), nullable=True),
        sa.Column("data_key", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alarms")),
    )
    with op.batch_alter_table("alarms") as batch:
        batch.create_index(batch.f("ix_alarms_approval_id"), ["approval_id"], unique=False)
        batch.create_index(
            "ix_alarms_open",
            ["closed_at"],
            unique=False,
            sqlite_where=_OPEN,
            postgresql_where=_OPEN,
        )

    op.create_table(
        "delegations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("from_email", sa.String(), nullable=False),
        sa.Column("to_email", sa.String(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delegations")),
    )
    with op.batch_alter_table("delegations") as batch:
        batch.create_index(batch.f("ix_delegations_to_email"), ["to_email"], unique=False)

    op.create_table(
        "execution_evidence",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("approval_id", sa.String(), nullable=False),
        sa.Column("finding", sa.String(), nullable=False),
        sa.Column("where", sa.String(), nullable=False),
        sa.Column("arguments_match", sa.Boolean(), nullable=True),
        sa.Column("gathered_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_evidence")),
    )
    with op.batch_alter_table("execution_evidence") as batch:
        batch.create_index(
            batch.f("ix_execution_evidence_approval_id"), ["approval_id"], unique=False
        )

    op.create_table(
        "grants",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("approval_id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("app_name", sa.String(), nullable=False),
        sa.Column("server_id", sa.String(), nullable=False),
        sa.Column("server_label", sa.String(), nullable=False),
        sa.Column("server_url", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("definition_digest", sa.String(), nullable=True),
        sa.Column("rule", sa.String(), nullable=True),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("data_key", sa.LargeBinary(), nullable=False),
        sa.Column("arguments", sa.LargeBinary(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("creator", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=True),
        sa.Column("ended_why", sa.String(), nullable=True),
        sa.Column("record_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    with op.batch_alter_table("grants") as batch:
        batch.create_index("ix_grants_app_tool", ["app_id", "server_id", "tool"], unique=False)
        batch.create_index(batch.f("ix_grants_approval_id"), ["approval_id"], unique=False)

    op.create_table(
        "pauses",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("begun_by", sa.String(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pauses")),
    )
    with op.batch_alter_table("pauses") as batch:
        batch.create_index(
            "uq_pauses_open",
            ["scope", "target"],
            unique=True,
            sqlite_where=_GOES_ON,
            postgresql_where=_GOES_ON,
        )

    op.create_table(
        "replicas",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
    )
    op.create_table(
        "shadow_rulings",
        sa.Column("approval_id", sa.String(), nullable=False),
        sa.Column("policy_digest", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=True),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("was", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("approval_id", "policy_digest", name=op.f("pk_shadow_rulings")),
    )
    with op.batch_alter_table("shadow_rulings") as batch:
        batch.create_index(batch.f("ix_shadow_rulings_created_at"), ["created_at"], unique=False)

    with op.batch_alter_table("approval_requests") as batch:
        batch.add_column(sa.Column("grant_id", sa.String(), nullable=True))
        batch.add_column(
            sa.Column("always_ask", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.add_column(
            sa.Column("undo_seconds", sa.Integer(), nullable=False, server_default="0")
        )
        batch.add_column(sa.Column("settles_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("execution_seconds", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("escalates_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("escalate_to", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("escalated_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("superseded_by", sa.String(), nullable=True))
        batch.add_column(sa.Column("supersedes", sa.String(), nullable=True))
        batch.add_column(sa.Column("released_by", sa.String(), nullable=True))
        batch.add_column(sa.Column("credential", sa.String(), nullable=True))
        batch.add_column(sa.Column("settlement", sa.String(), nullable=True))
        batch.add_column(sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("settled_by", sa.String(), nullable=True))
        batch.add_column(sa.Column("settlement_reason", sa.LargeBinary(), nullable=True))
        batch.drop_constraint(
            batch.f("uq_approval_requests_exchange_id_upstream_id"), type_="unique"
        )
        batch.create_index(
            "uq_approval_requests_standing",
            ["exchange_id", "upstream_id"],
            unique=True,
            sqlite_where=_NOT_ASKED_ANEW,
            postgresql_where=_NOT_ASKED_ANEW,
        )
        batch.create_index(
            "ix_approval_requests_settled_at",
            ["settled_at"],
            unique=False,
            sqlite_where=_SETTLED,
            postgresql_where=_SETTLED,
        )
        batch.create_index(
            "ix_approval_requests_unclear",
            ["execution"],
            unique=False,
            sqlite_where=_UNCLEAR,
            postgresql_where=_UNCLEAR,
        )

    with op.batch_alter_table("exchanges") as batch:
        batch.add_column(sa.Column("owner", sa.String(), nullable=True))
        batch.add_column(sa.Column("withdrawn", sa.String(), nullable=True))
        batch.add_column(sa.Column("left_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("thread", sa.String(), nullable=True))
        batch.create_index(
            "uq_exchanges_open_key",
            ["app_id", "idempotency"],
            unique=True,
            sqlite_where=_NOT_OVER,
            postgresql_where=_NOT_OVER,
        )
        batch.create_index(
            "ix_exchanges_key",
            ["app_id", "idempotency"],
            unique=False,
            sqlite_where=_KEYED,
            postgresql_where=_KEYED,
        )
        batch.create_index("ix_exchanges_body", ["app_id", "body_digest"], unique=False)
        batch.create_index(batch.f("ix_exchanges_thread"), ["thread"], unique=False)

    with op.batch_alter_table("policy_versions") as batch:
        batch.add_column(sa.Column("shadow_since", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("shadow_until", sa.DateTime(timezone=True), nullable=True))

    with op.batch_alter_table("reviews") as batch:
        batch.add_column(sa.Column("on_behalf_of", sa.String(), nullable=True))
        batch.add_column(
            sa.Column("emergency", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.add_column(sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))
        batch.drop_constraint(batch.f("uq_reviews_approval_id_user_id"), type_="unique")
        batch.create_index(
            "uq_reviews_standing",
            ["approval_id", "user_id"],
            unique=True,
            sqlite_where=_STANDS,
            postgresql_where=_STANDS,
        )

    # Rows that were there have got their value; new ones say theirs.
    with op.batch_alter_table("approval_requests") as batch:
        batch.alter_column("always_ask", server_default=None)
        batch.alter_column("undo_seconds", server_default=None)
    with op.batch_alter_table("reviews") as batch:
        batch.alter_column("emergency", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("reviews") as batch:
        batch.drop_index("uq_reviews_standing", sqlite_where=_STANDS, postgresql_where=_STANDS)
        batch.create_unique_constraint(
            batch.f("uq_reviews_approval_id_user_id"), ["approval_id", "user_id"]
        )
        batch.drop_column("withdrawn_at")
        batch.drop_column("emergency")
        batch.drop_column("on_behalf_of")

    with op.batch_alter_table("policy_versions") as batch:
        batch.drop_column("shadow_until")
        batch.drop_column("shadow_since")

    with op.batch_alter_table("exchanges") as batch:
        batch.drop_index(batch.f("ix_exchanges_thread"))
        batch.drop_index("ix_exchanges_body")
        batch.drop_index("ix_exchanges_key", sqlite_where=_KEYED, postgresql_where=_KEYED)
        batch.drop_index(
            "uq_exchanges_open_key", sqlite_where=_NOT_OVER, postgresql_where=_NOT_OVER
        )
        batch.drop_column("thread")
        batch.drop_column("left_at")
        batch.drop_column("withdrawn")
        batch.drop_column("owner")

    with op.batch_alter_table("approval_requests") as batch:
        batch.drop_index(
            "ix_approval_requests_unclear", sqlite_where=_UNCLEAR, postgresql_where=_UNCLEAR
        )
        batch.drop_index(
            "ix_approval_requests_settled_at", sqlite_where=_SETTLED, postgresql_where=_SETTLED
        )
        batch.drop_index(
            "uq_approval_requests_standing",
            sqlite_where=_NOT_ASKED_ANEW,
            postgresql_where=_NOT_ASKED_ANEW,
        )
        batch.create_unique_constraint(
            batch.f("uq_approval_requests_exchange_id_upstream_id"),
            ["exchange_id", "upstream_id"],
        )
        batch.drop_column("settlement_reason")
        batch.drop_column("settled_by")
        batch.drop_column("settled_at")
        batch.drop_column("settlement")
        batch.drop_column("credential")
        batch.drop_column("released_by")
        batch.drop_column("supersedes")
        batch.drop_column("superseded_by")
        batch.drop_column("escalated_at")
        batch.drop_column("escalate_to")
        batch.drop_column("escalates_at")
        batch.drop_column("execution_seconds")
        batch.drop_column("settles_at")
        batch.drop_column("undo_seconds")
        batch.drop_column("always_ask")
        batch.drop_column("grant_id")

    with op.batch_alter_table("shadow_rulings") as batch:
        batch.drop_index(batch.f("ix_shadow_rulings_created_at"))

    op.drop_table("shadow_rulings")
    op.drop_table("replicas")
    with op.batch_alter_table("pauses") as batch:
        batch.drop_index("uq_pauses_open", sqlite_where=_GOES_ON, postgresql_where=_GOES_ON)

    op.drop_table("pauses")
    with op.batch_alter_table("grants") as batch:
        batch.drop_index(batch.f("ix_grants_approval_id"))
        batch.drop_index("ix_grants_app_tool")

    op.drop_table("grants")
    with op.batch_alter_table("execution_evidence") as batch:
        batch.drop_index(batch.f("ix_execution_evidence_approval_id"))

    op.drop_table("execution_evidence")
    with op.batch_alter_table("delegations") as batch:
        batch.drop_index(batch.f("ix_delegations_to_email"))

    op.drop_table("delegations")
    with op.batch_alter_table("alarms") as batch:
        batch.drop_index("ix_alarms_open", sqlite_where=_OPEN, postgresql_where=_OPEN)
        batch.drop_index(batch.f("ix_alarms_approval_id"))

    op.drop_table("alarms")
