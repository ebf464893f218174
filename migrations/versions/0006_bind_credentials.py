"""bind credentials to servers and origins.

Revision ID: 0006
"""

from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

_PORTS = {"http": 80, "https": 443}


def upgrade() -> None:
    op.create_table(
        "bound_credentials",
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("server_id", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("bound_by", sa.String(), nullable=False),
        sa.Column("bound_how", sa.String(), nullable=False),
        sa.Column("bound_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["server_id"], ["servers.id"], name=op.f("fk_bound_credentials_server_id")
        ),
        sa.PrimaryKeyConstraint("reference", "server_id", name=op.f("pk_bound_credentials")),
    )
    _bind_what_is_configured()


def _bind_what_is_configured() -> None:
    """What servers are sent today, they are sent tomorrow; from now on a change needs a person."""
    servers = sa.table(
        "servers",
        sa.column("id", sa.String()),
        sa.column("url", sa.String()),
        sa.column("credential", sa.JSON()),
        sa.column("removed_at", sa.DateTime(timezone=True)),
    )
    bound = sa.table(
        "bound_credentials",
        *(
            sa.column(name, sa.String())
            for name in ("reference", "server_id", "origin", "bound_by", "bound_how")
        ),
        sa.column("bound_at", sa.DateTime(timezone=True)),
    )
    connection = op.get_bind()
    live = sa.select(servers).where(servers.c.removed_at.is_(None))
    for server_id, url, credential, _ in connection.execute(live).all():
        if credential and credential.get("from"):
            connection.execute(
                bound.insert().values(
                    reference=credential["from"],
                    server_id=server_id,
                    origin=_origin(url),
                    bound_by="migration",
                    bound_how="migration",
                    bound_at=sa.func.current_timestamp(),
                )
            )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or _PORTS.get(parts.scheme, 443)}"


def downgrade() -> None:
    op.drop_table("bound_credentials")
