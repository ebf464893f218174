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


def _where_null(table: str, column: str) -> Index:
    """An index of the few rows in which `column` is null."""
    condition = text(f"{column} IS NULL")
    return Index(f"ix_{table}_open", column, sqlite_where=condition, postgresql_where=condition)


def _of_exchanges(table: str) -> Index:
    """An index by exchange of the rows that belong to one; most passed through and do not."""
    condition = text("exchange_id <> ''")
    name = f"ix_{table}_exchange_id"
    return Index(name, "exchange_id", sqlite_where=condition, postgresql_where=condition)


#: The condition under which an exchange is not over.
OPEN_STATES = "state IN ('forwarding', 'holding', 'sending')"
KEYED = "idempotency IS NOT NULL"
#: The condition under which it is not known yet what became of a call.
UNCLEAR = "execution IN ('sending', 'unknown')"


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
    pin: str = "on_first_use"  # on_first_use | accept
    listed_at: datetime | None = _time(nullable=True)  # first list of everything it has
    created_at: datetime = _time()
    changed_at: datetime = _time()
    removed_at: datetime | None = _time(nullable=True)


class ToolDefinition(SQLModel, table=True):
    """A tool as its server last listed it, and the digest that a person or first use pinned.

    A new tool has an empty pin, which equals no listing. `source` is who saw the listing, `signs`
    what stands out in its texts, `gone_at` since when its server lists it no more.
    """

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
    source: str | None = None  # stream | probe
    signs: list[dict[str, str]] | None = _json(nullable=True)
    gone_at: datetime | None = _time(nullable=True)
    refused_at: datetime | None = _time(nullable=True)
    refused_by: str | None = None


class UnknownServer(SQLModel, table=True):
    """A server that an app wanted to use and nobody has registered: refused, and noted."""

    __tablename__ = "unknown_servers"
    __table_args__ = (
        UniqueConstraint("app_id", "address", name="uq_unknown_servers_app_id_address"),
    )
    id: str = Field(primary_key=True)
    app_id: str
    app_name: str
    address: str  # scheme, host, port and path; or its label, where no address was given
    first_seen: datetime = _time()
    last_seen: datetime = _time()
    times: int = 1


class SealedSecret(SQLModel, table=True):
    """A credential value in our own vault; versions are kept, the highest is the current one."""

    __tablename__ = "sealed_secrets"
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    data_key: bytes = _sealed()
    value: bytes = _sealed()
    created_at: datetime = _time()


class BoundCredential(SQLModel, table=True):
    """To which origin a server may be sent the secret behind a reference, and who said so.

    Without such a row, nothing is opened for the server, whatever its configuration names.
    """

    __tablename__ = "bound_credentials"
    reference: str = Field(primary_key=True)
    server_id: str = Field(primary_key=True, foreign_key="servers.id")
    origin: str  # scheme://host:port
    bound_by: str  # who, as records name them
    bound_how: str  # session | token | host | file | migration
    bound_at: datetime = _time()


class OAuthClientRow(SQLModel, table=True):
    """Who asks which token server for tokens: `settings` as `gateway.store.oauth` has them."""

    __tablename__ = "oauth_clients"
    name: str = Field(primary_key=True)
    settings: dict[str, Any] = _json()
    created_at: datetime = _time()
    changed_at: datetime = _time()


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
    # While it only says what it would have said; one version at most at a time.
    shadow_since: datetime | None = _time(nullable=True)
    shadow_until: datetime | None = _time(nullable=True)


class Pause(SQLModel, table=True):
    """Nothing that it covers is released. `scope` all | app | server; `target` which of them."""

    __tablename__ = "pauses"
    __table_args__ = (
        Index(
            "uq_pauses_open",
            "scope",
            "target",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    scope: str
    target: str  # empty for all
    reason: str
    begun_at: datetime = _time()
    begun_by: str  # e-mail address, operator, or gateway: after an alarm
    ended_at: datetime | None = _time(nullable=True)
    ended_by: str | None = None


# --- who signs in ---------------------------------------------------------------------------


class User(SQLModel, table=True):
    """A person who signs in here. `roles`: viewer, reviewer, break_glass, auditor, admin.

    With `issuer` and `subject` the person comes from there: roles and `groups` are what it said.
    """

    __tablename__ = "users"
    __table_args__ = (Index("uq_users_issuer_subject", "issuer", "subject", unique=True),)
    id: str = Field(primary_key=True)
    email: str = Field(unique=True)
    name: str | None = None
    roles: list[str] = _json()
    issuer: str | None = None
    subject: str | None = None
    groups: list[str] | None = _json(nullable=True)  # reviewer groups, beside those by address
    locale: str | None = None
    theme: str | None = None
    created_at: datetime = _time()
    disabled_at: datetime | None = _time(nullable=True)


class ReviewerGroup(SQLModel, table=True):
    """Named people (e-mail addresses) a rule may ask for."""

    __tablename__ = "reviewer_groups"
    name: str = Field(primary_key=True)
    members: list[str] = _json()


class Delegation(SQLModel, table=True):
    """Who stands in for whom, from when to when: with the groups of the other, not the roles."""

    __tablename__ = "delegations"
    id: str = Field(primary_key=True)
    from_email: str
    to_email: str = Field(index=True)
    starts_at: datetime = _time()
    ends_at: datetime = _time()
    created_at: datetime = _time()
    created_by: str
    revoked_at: datetime | None = _time(nullable=True)


class AccessToken(SQLModel, table=True):
    """A personal access token `gp_pat_…`: public id, SHA-256 of the whole token."""

    __tablename__ = "access_tokens"
    id: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id", index=True)
    digest: bytes = _sealed()
    scopes: list[str] | None = _json(nullable=True)  # permissions; None: all of its owner's
    created_at: datetime = _time()
    expires_at: datetime | None = _time(nullable=True)
    used_at: datetime | None = _time(nullable=True)
    revoked_at: datetime | None = _time(nullable=True)


class SignInLink(SQLModel, table=True):
    """A one-time sign-in link; only the digest of its code is kept."""

    __tablename__ = "sign_in_links"
    digest: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id")
    created_at: datetime = _time()
    expires_at: datetime = _time()
    used_at: datetime | None = _time(nullable=True)


class UsedCode(SQLModel, table=True):
    """Something of the identity provider that counts once: a way in, a notice of signing out."""

    __tablename__ = "used_codes"
    digest: str = Field(primary_key=True)
    expires_at: datetime = _time(index=True)


class WebSession(SQLModel, table=True):
    """A server-side web session; the cookie holds the code, the row its digest.

    `authenticated_at` is when the person last proved who they are; `sid` the provider's name of
    its own session; `id_token`, sealed, is what is shown to the provider to sign out there.
    """

    __tablename__ = "web_sessions"
    digest: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id", index=True)
    created_at: datetime = _time()
    seen_at: datetime = _time()
    expires_at: datetime = _time()
    ended_at: datetime | None = _time(nullable=True)
    authenticated_at: datetime | None = _time(nullable=True)
    provider: str | None = None  # the issuer through which the person came
    sid: str | None = Field(default=None, index=True)
    data_key: bytes | None = _sealed(nullable=True)
    id_token: bytes | None = _sealed(nullable=True)


# --- what happens ---------------------------------------------------------------------------


class Replica(SQLModel, table=True):
    """A running gateway. Times are the database's: once `seen_at` is old, what it owns is free."""

    __tablename__ = "replicas"
    id: str = Field(primary_key=True)
    name: str  # host and process, for people
    started_at: datetime = _time()
    seen_at: datetime = _time()


class Exchange(SQLModel, table=True):
    """One app request and its one logical response.

    `snapshot` is the saved machine, `final` the finished response object, `log` the frames of a
    background stream; all are sealed under `data_key`. `shown` are digests of the definitions that
    its model was shown, by server id and tool. `fence` grows with every claim, so that a
    paused owner cannot act any more. `owner` is the replica that drives it. `thread` is shared by
    what goes on from one another: the first exchange of a chain, or the conversation.
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
        # Two gateways that are given the same key at once: one of them opens, the other joins.
        Index(
            "uq_exchanges_open_key",
            "app_id",
            "idempotency",
            unique=True,
            sqlite_where=text(OPEN_STATES),
            postgresql_where=text(OPEN_STATES),
        ),
        Index(
            "ix_exchanges_key",
            "app_id",
            "idempotency",
            sqlite_where=text(KEYED),
            postgresql_where=text(KEYED),
        ),
        Index("ix_exchanges_body", "app_id", "body_digest"),
    )
    id: str = Field(primary_key=True)
    app_id: str = Field(index=True)
    state: str = Field(index=True)  # forwarding | holding | sending | done | failed | cancelled
    owner: str | None = None
    withdrawn: str | None = None  # why its app wants no more of it, for the replica that drives it
    left_at: datetime | None = _time(nullable=True)  # since when no connection waits for it
    thread: str | None = Field(default=None, index=True)
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
    shown: dict[str, dict[str, list[str]]] | None = _json(nullable=True)
    user_token: bytes | None = _sealed(nullable=True)  # of whom the app acts for, until the end
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
        # A call has one request that counts: what was superseded is asked anew.
        Index(
            "uq_approval_requests_standing",
            "exchange_id",
            "upstream_id",
            unique=True,
            sqlite_where=text("superseded_by IS NULL"),
            postgresql_where=text("superseded_by IS NULL"),
        ),
        _where_known("approval_requests", "settled_at"),
        Index("ix_approval_requests_state_deadline", "state", "deadline", "id"),
        Index(
            "ix_approval_requests_unclear",
            "execution",
            sqlite_where=text(UNCLEAR),
            postgresql_where=text(UNCLEAR),
        ),
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
    step_up: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    quorum_needed: int = 1
    reviewer_groups: list[str] | None = _json(nullable=True)
    record_id: str  # of `approval.requested`: nobody is shown what is not in the ledger
    created_at: datetime = _time()
    deadline: datetime = _time()
    decided_at: datetime | None = _time(nullable=True, index=True)
    decided_by: str | None = None  # reviewers | policy | grant | expiry | cancelled
    decision_record_id: str | None = None
    grant_id: str | None = None  # the grant that answered
    always_ask: bool = False  # no grant may answer
    undo_seconds: int = 0
    settles_at: datetime | None = _time(nullable=True)  # until then reviewers may take back theirs
    execution_seconds: int | None = None  # after the decision, it may be released for so long
    escalates_at: datetime | None = _time(nullable=True)
    escalate_to: list[str] | None = _json(nullable=True)  # groups
    escalated_at: datetime | None = _time(nullable=True)
    # What was decided did not hold any more when it was to be released: the request that asks anew.
    superseded_by: str | None = None
    supersedes: str | None = None
    released_by: str | None = None  # the exchange that sent it; another one where it was left open
    credential: str | None = None  # reference and version that went along, never a value
    reason: bytes | None = _sealed(nullable=True)  # what the model is told on a denial
    execution: str = "not_sent"  # not_sent | sending | executed | failed | unknown
    arguments_match: bool | None = None
    executed_at: datetime | None = _time(nullable=True)
    # A person has said what became of a call whose outcome was unknown: executed | not_executed.
    settlement: str | None = None
    settled_at: datetime | None = _time(nullable=True)
    settled_by: str | None = None
    settlement_reason: bytes | None = _sealed(nullable=True)


class Review(SQLModel, table=True):
    """One reviewer's approve or deny. `reason` and `note` are sealed."""

    __tablename__ = "reviews"
    __table_args__ = (
        # One person counts once, whatever the channel; one who takes it back may review anew.
        Index(
            "uq_reviews_standing",
            "approval_id",
            "user_id",
            unique=True,
            sqlite_where=text("withdrawn_at IS NULL"),
            postgresql_where=text("withdrawn_at IS NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    approval_id: str = Field(foreign_key="approval_requests.id", index=True)
    user_id: str
    reviewer: str  # e-mail address as it was at that time
    verdict: str  # approve | deny
    channel: str  # web | api | cli
    on_behalf_of: str | None = None  # e-mail address of who delegated
    emergency: bool = False  # break-glass
    reason: bytes | None = _sealed(nullable=True)
    note: bytes | None = _sealed(nullable=True)
    digest: str
    created_at: datetime = _time()
    withdrawn_at: datetime | None = _time(nullable=True)


class Grant(SQLModel, table=True):
    """A remembered approval: answers calls like the one it was made from.

    `scope` says for whom (app | end_user | thread, and `subject` which), `arguments` sealed JSON
    what must be the same: {exact: string}, or {fields: {path: value}}, or {} for the whole tool.
    """

    __tablename__ = "grants"
    __table_args__ = (Index("ix_grants_app_tool", "app_id", "server_id", "tool"),)
    id: str = Field(primary_key=True)
    approval_id: str = Field(index=True)  # whose approval is remembered
    app_id: str
    app_name: str
    server_id: str
    server_label: str
    server_url: str
    tool: str
    definition_digest: str | None = None
    rule: str | None = None
    scope: str
    subject: str
    kind: str  # exact | fields | tool
    data_key: bytes = _sealed()
    arguments: bytes = _sealed()
    uses: int = 0
    max_uses: int | None = None
    created_at: datetime = _time()
    created_by: str  # user id
    creator: str  # e-mail address as it was at that time
    expires_at: datetime = _time()
    ended_at: datetime | None = _time(nullable=True)
    ended_by: str | None = None
    ended_why: str | None = None  # revoked | definition_changed | server_changed
    record_id: str  # of `grant.created`


class ShadowRuling(SQLModel, table=True):
    """What a version in shadow would have said about a call, beside what was said."""

    __tablename__ = "shadow_rulings"
    approval_id: str = Field(primary_key=True)
    policy_digest: str = Field(primary_key=True)
    effect: str
    rule: str | None = None
    why: str
    was: str  # the effect of the policy in force
    created_at: datetime = _time(index=True)


class Evidence(SQLModel, table=True):
    """What was found out, without a person, about a call whose outcome was unknown."""

    __tablename__ = "execution_evidence"
    id: str = Field(primary_key=True)
    approval_id: str = Field(index=True)
    finding: str  # executed | failed | absent | unavailable
    where: str  # the id of the response or conversation that was looked into, or why none was
    arguments_match: bool | None = None
    gathered_at: datetime = _time()


class Alarm(SQLModel, table=True):
    """Something that people must look at: on every page until somebody closes it.

    `kind` mismatch | break_glass | late_execution. `due_at`: by then it has to be closed.
    """

    __tablename__ = "alarms"
    __table_args__ = (_where_null("alarms", "closed_at"),)
    id: str = Field(primary_key=True)
    kind: str
    code: str
    app_name: str
    exchange_id: str | None = None
    approval_id: str | None = Field(default=None, index=True)
    server_label: str | None = None
    tool: str | None = None
    raised_by: str | None = None  # user id: may not close it
    raised_at: datetime = _time()
    due_at: datetime | None = _time(nullable=True)
    closed_at: datetime | None = _time(nullable=True)
    closed_by: str | None = None
    note: bytes | None = _sealed(nullable=True)
    data_key: bytes | None = _sealed(nullable=True)


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
