"""Every table on one page. Rows never leave the functions that read them.

Payloads (arguments, reasons, snapshots, responses, secrets) are bytes sealed by
`gateway.store.envelope`; everything else is a name, a state, a time or a digest.
States are the words of ARCHITECTURE.md; every state change is a compare-and-set.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index, LargeBinary, MetaData, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from gateway.store.database import UtcDateTime

metadata: MetaData = SQLModel.metadata
metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _time(*, nullable: bool = False, index: bool = False) -> Any:
    return Field(
        default=None if nullable else ...,
        sa_column=Column(UtcDateTime, nullable=nullable, index=index),
    )


def _sealed(*, nullable: bool = False) -> Any:
    return Field(
        default=None if nullable else ..., sa_column=Column(LargeBinary, nullable=nullable)
    )


def _json(*, nullable: bool = False) -> Any:
    return Field(default=None if nullable else ..., sa_column=Column(JSON, nullable=nullable))


def _where_known(table: str, column: str) -> Index:
    """An index of the rows in which `column` is not null."""
    condition = text(f"{column} IS NOT NULL")
    return Index(f"ix_{table}_{column}", column, sqlite_where=condition, postgresql_where=condition)


def _of_exchanges(table: str) -> Index:
    """An index by exchange of the rows that belong to one; most passed through and do not."""
    condition = text("exchange_id <> ''")
    name = f"ix_{table}_exchange_id"
    return Index(name, "exchange_id", sqlite_where=condition, postgresql_where=condition)


#: The condition under which an exchange is not over.
OPEN_STATES = "state IN ('forwarding', 'holding', 'sending')"


# --- what is configured ---------------------------------------------------------------------


class Meta(SQLModel, table=True):
    """Small facts about this installation; `config_version` grows with every change of config."""

    __tablename__ = "meta"
    name: str = Field(primary_key=True)
    value: str


class App(SQLModel, table=True):
    """A program that calls us with a key. `servers` None means every registered server."""

    __tablename__ = "apps"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    owner: str | None = None
    wait: str = "hold"  # hold | return
    plain: str = "patient"  # patient | strict: how a call without stream is held
    heartbeat: str = "auto"  # auto | comments
    servers: list[str] | None = _json(nullable=True)
    # {issuer, audience, subject?}: whose access tokens are accepted instead of a key.
    identity: dict[str, str] | None = _json(nullable=True)
    created_at: datetime = _time()
    disabled_at: datetime | None = _time(nullable=True)


class AppKey(SQLModel, table=True):
    """One key of an app: looked up by its public id, compared by SHA-256 of the whole key."""

    __tablename__ = "app_keys"
    id: str = Field(primary_key=True)
    app_id: str = Field(foreign_key="apps.id", index=True)
    digest: bytes = _sealed()
    created_at: datetime = _time()
    revoked_at: datetime | None = _time(nullable=True)


class Server(SQLModel, table=True):
    """A registered MCP server. `credential` is {header, scheme, from}: a reference, no value."""

    __tablename__ = "servers"
    id: str = Field(primary_key=True)
    label: str = Field(unique=True)
    url: str = Field(index=True)
    description: str | None = None
    allow_private_network: bool = False
    inject: str = "headers"  # headers | authorization
    credential: dict[str, str] | None = _json(nullable=True)
    pin: str = "on_first_use"
    created_at: datetime = _time()
    changed_at: datetime = _time()
    removed_at: datetime | None = _time(nullable=True)


class ToolDefinition(SQLModel, table=True):
    """A tool as its server last listed it, and the digest that a person or first use pinned."""

    __tablename__ = "tool_definitions"
    server_id: str = Field(primary_key=True, foreign_key="servers.id")
    name: str = Field(primary_key=True)
    pinned_digest: str
    pinned: dict[str, Any] = _json()
    listed_digest: str
    listed: dict[str, Any] = _json()
    pinned_at: datetime = _time()
    pinned_by: str
    listed_at: datetime = _time()


class SealedSecret(SQLModel, table=True):
    """A credential value in our own vault; versions are kept, the highest is the current one."""

    __tablename__ = "sealed_secrets"
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    data_key: bytes = _sealed()
    value: bytes = _sealed()
    created_at: datetime = _time()


class PolicyVersion(SQLModel, table=True):
    """An immutable list of rules; exactly one version at most is active."""

    __tablename__ = "policy_versions"
    id: str = Field(primary_key=True)
    number: int = Field(unique=True)
    digest: str = Field(index=True)
    rules: list[dict[str, Any]] = _json()
    created_at: datetime = _time()
    created_by: str
    activated_at: datetime | None = _time(nullable=True)
    deactivated_at: datetime | None = _time(nullable=True)


# --- who signs in ---------------------------------------------------------------------------


class User(SQLModel, table=True):
    """A person who signs in here. `roles`: viewer, reviewer, auditor, admin."""

    __tablename__ = "users"
    id: str = Field(primary_key=True)
    email: str = Field(unique=True)
    name: str | None = None
    roles: list[str] = _json()
    locale: str | None = None
    theme: str | None = None
    created_at: datetime = _time()
    disabled_at: datetime | None = _time(nullable=True)


class ReviewerGroup(SQLModel, table=True):
    """Named people (e-mail addresses) a rule may ask for."""

    __tablename__ = "reviewer_groups"
    name: str = Field(primary_key=True)
    members: list[str] = _json()


class AccessToken(SQLModel, table=True):
    """A personal access token `gp_pat_…`: public id, SHA-256 of the whole token."""

    __tablename__ = "access_tokens"
    id: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id", index=True)
    digest: bytes = _sealed()
    created_at: datetime = _time()
    expires_at: datetime | None = _time(nullable=True)
    revoked_at: datetime | None = _time(nullable=True)


class SignInLink(SQLModel, table=True):
    """A one-time sign-in link; only the digest of its code is kept."""

    __tablename__ = "sign_in_links"
    digest: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id")
    created_at: datetime = _time()
    expires_at: datetime = _time()
    used_at: datetime | None = _time(nullable=True)


class WebSession(SQLModel, table=True):
    """A server-side web session; the cookie holds the code, the row its digest."""

    __tablename__ = "web_sessions"
    digest: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id", index=True)
    created_at: datetime = _time()
    seen_at: datetime = _time()
    expires_at: datetime = _time()
    ended_at: datetime | None = _time(nullable=True)


# --- what happens ---------------------------------------------------------------------------


class Exchange(SQLModel, table=True):
    """One app request and its one logical response.

    `snapshot` is the saved machine, `final` the finished response object, `log` the frames of a
    background stream; all are sealed under `data_key`. `fence` grows with every claim, so that a
    paused owner cannot act any more.
    """

    __tablename__ = "exchanges"
    __table_args__ = (
        # One at a time in a conversation: Azure refuses another while an approval is open there.
        Index(
            "uq_exchanges_open_conversation",
            "conversation_id",
            unique=True,
            sqlite_where=text(OPEN_STATES),
            postgresql_where=text(OPEN_STATES),
        ),
    )
    id: str = Field(primary_key=True)
    app_id: str = Field(index=True)
    state: str = Field(index=True)  # forwarding | holding | sending | done | failed | cancelled
    response_id: str | None = None
    model: str | None = None
    end_user: str | None = None
    streamed: bool = False
    background: bool = False
    stored: bool = True
    rounds: int = 0
    fence: int = 0
    body_digest: str | None = None
    idempotency: str | None = None  # SHA-256 of the key that the app gave the request
    conversation_id: str | None = Field(default=None, index=True)
    data_key: bytes | None = _sealed(nullable=True)
    snapshot: bytes | None = _sealed(nullable=True)
    final: bytes | None = _sealed(nullable=True)
    log: bytes | None = _sealed(nullable=True)
    created_at: datetime = _time(index=True)
    finished_at: datetime | None = _time(nullable=True)


class ResponseId(SQLModel, table=True):
    """Every upstream response id and whose it is; round 0's is the id the app sees."""

    __tablename__ = "response_ids"
    __table_args__ = (_of_exchanges("response_ids"),)
    response_id: str = Field(primary_key=True)
    exchange_id: str  # empty for a request that passed through
    app_id: str
    round: int
    mediated: bool = False  # an exchange with MCP tools: its object lives with us
    created_at: datetime = _time()


class HandedItem(SQLModel, table=True):
    """An item that the gateway handed to an app: the only ones it may name or send back.

    `digest` is that of an MCP item, which must come back unchanged; empty for other items.
    `hidden` is sealed JSON: what stood around the item in the chain and is not shown to apps.
    """

    __tablename__ = "handed_items"
    __table_args__ = (_of_exchanges("handed_items"),)
    item_id: str = Field(primary_key=True)
    app_id: str = Field(primary_key=True)
    exchange_id: str  # empty for a request that passed through
    digest: str
    hidden: bytes | None = _sealed(nullable=True)


class UploadedFile(SQLModel, table=True):
    """A file that an app uploaded through the gateway, and whose it is."""

    __tablename__ = "uploaded_files"
    file_id: str = Field(primary_key=True)
    app_id: str = Field(index=True)
    purpose: str
    created_at: datetime = _time()


class Conversation(SQLModel, table=True):
    """A conversation that an app made through the gateway, and whose it is."""

    __tablename__ = "conversations"
    conversation_id: str = Field(primary_key=True)
    app_id: str
    created_at: datetime = _time()


class ApprovalRequest(SQLModel, table=True):
    """One held call put before reviewers.

    `payload` is sealed JSON {arguments, nonce}: the exact argument string and the blind of its
    commitments. `digest` covers exchange, server, tool, argument bytes and tool definition.
    """

    __tablename__ = "approval_requests"
    __table_args__ = (
        UniqueConstraint("exchange_id", "upstream_id"),
        Index("ix_approval_requests_state_deadline", "state", "deadline", "id"),
    )
    id: str = Field(primary_key=True)
    exchange_id: str = Field(foreign_key="exchanges.id", index=True)
    upstream_id: str = Field(index=True)
    round: int
    state: str  # pending | approved | denied | expired | cancelled
    app_id: str
    app_name: str = Field(index=True)
    end_user: str | None = None
    server_id: str
    server_label: str = Field(index=True)
    server_url: str
    tool: str = Field(index=True)
    payload: bytes = _sealed()
    digest: str
    definition_digest: str | None = None
    definition: dict[str, Any] | None = _json(nullable=True)
    policy_digest: str | None = None
    rule: str | None = None
    risk_signals: list[dict[str, Any]] = _json()
    require_reason: bool = False
    quorum_needed: int = 1
    reviewer_groups: list[str] | None = _json(nullable=True)
    record_id: str  # of `approval.requested`: nobody is shown what is not in the ledger
    created_at: datetime = _time()
    deadline: datetime = _time()
    decided_at: datetime | None = _time(nullable=True, index=True)
    decided_by: str | None = None  # reviewers | policy | grant | expiry | cancelled
    decision_record_id: str | None = None
    reason: bytes | None = _sealed(nullable=True)  # what the model is told on a denial
    execution: str = "not_sent"  # not_sent | sending | executed | failed | unknown
    arguments_match: bool | None = None
    executed_at: datetime | None = _time(nullable=True)


class Review(SQLModel, table=True):
    """One reviewer's approve or deny. `reason` and `note` are sealed."""

    __tablename__ = "reviews"
    __table_args__ = (UniqueConstraint("approval_id", "user_id"),)
    id: str = Field(primary_key=True)
    approval_id: str = Field(foreign_key="approval_requests.id", index=True)
    user_id: str
    reviewer: str  # e-mail address as it was at that time
    verdict: str  # approve | deny
    channel: str  # web | api | cli
    reason: bytes | None = _sealed(nullable=True)
    note: bytes | None = _sealed(nullable=True)
    digest: str
    created_at: datetime = _time()


# --- the ledger -----------------------------------------------------------------------------


class AuditRecord(SQLModel, table=True):
    """One immutable entry. `position` is the order of insertion, `index` its place in the tree.

    The columns beside `body` repeat members of it for filtering; the body is what counts.
    """

    __tablename__ = "audit_records"
    __table_args__ = (
        Index(
            "ix_audit_records_unsequenced",
            "position",
            sqlite_where=text('"index" IS NULL'),
            postgresql_where=text('"index" IS NULL'),
        ),
        # Most records are of requests that passed through: they pay for no index they need not.
        _where_known("audit_records", "exchange"),
        _where_known("audit_records", "approval"),
    )
    position: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    index: int | None = Field(default=None, unique=True)
    leaf_hash: bytes = _sealed()
    body: bytes = _sealed()
    kind: str = Field(index=True)
    ts: datetime = _time()
    actor: str | None = None
    app: str | None = Field(default=None, index=True)
    server: str | None = None
    tool: str | None = None
    exchange: str | None = None
    approval: str | None = None


class AuditTile(SQLModel, table=True):
    """A full 256-hash tile of the tree above the leaves (C2SP tlog-tiles, levels 1 and up)."""

    __tablename__ = "audit_tiles"
    level: int = Field(primary_key=True)
    index: int = Field(primary_key=True)
    hashes: bytes = _sealed()


class AuditCheckpoint(SQLModel, table=True):
    """A signed head. A size is signed once; an epoch never goes back."""

    __tablename__ = "audit_checkpoints"
    size: int = Field(primary_key=True)
    epoch: int
    root: bytes = _sealed()
    note: str
    created_at: datetime = _time(index=True)
