"""Approval requests as people and programs see them: the same facts on every channel."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import orjson

T = TypeVar("T")


#: What the upstream id of a call begins with that Azure made without asking.
UNASKED = "unasked:"


@dataclass(frozen=True)
class Page(Generic[T]):
    """Part of a list; `next` is the cursor of what follows, None at the end."""

    items: list[T]
    next: str | None = None


@dataclass(frozen=True)
class ServerName:
    """A server as it was when the call was asked for."""

    label: str
    url: str


@dataclass(frozen=True)
class Quorum:
    """How many approving reviews a decision needs, and how many there are."""

    needed: int
    given: int


@dataclass(frozen=True)
class ReviewView:
    """One person's review. `note` is for people here only; `reason` goes to the model.

    `counts` is false once the person may not sign in any more.
    """

    reviewer: str
    verdict: str
    channel: str
    at: datetime
    reason: str | None = None
    note: str | None = None
    on_behalf_of: str | None = None
    emergency: bool = False
    counts: bool = True


@dataclass(frozen=True)
class DecisionView:
    """The outcome: `by` is reviewers, policy, grant (which one), expiry or cancelled."""

    by: str
    verdict: str
    at: datetime
    reason: str | None = None
    grant: str | None = None


@dataclass(frozen=True)
class EscalationView:
    """When more groups may decide (`to`), and since when they may (`since`)."""

    at: datetime
    to: tuple[str, ...]
    since: datetime | None = None


@dataclass(frozen=True)
class SettlementView:
    """What a person said became of a call: executed | not_executed; `reason` is for people here."""

    outcome: str
    by: str
    at: datetime
    reason: str | None = None


@dataclass(frozen=True)
class EvidenceView:
    """What was found out without a person: executed, failed, absent or unavailable, and where."""

    finding: str
    where: str
    arguments_match: bool | None
    at: datetime


@dataclass(frozen=True)
class RecordIndexes:
    """Where the ledger says so; None while the record has no place in the tree yet."""

    requested: int | None = None
    decided: int | None = None


@dataclass(frozen=True)
class ApprovalView:
    """One approval request, opened. `arguments` is the exact string that Azure proposed."""

    id: str
    state: str
    exchange_id: str
    app: str
    end_user: str | None
    server: ServerName
    server_id: str
    tool: str
    arguments: str
    digest: str
    risk_signals: tuple[dict[str, Any], ...]
    rule: str | None
    policy_digest: str | None
    quorum: Quorum
    groups: tuple[str, ...]
    require_reason: bool
    step_up: bool
    created_at: datetime
    deadline: datetime
    reviews: tuple[ReviewView, ...]
    decision: DecisionView | None
    execution: str
    arguments_match: bool | None
    executed_at: datetime | None
    definition: dict[str, Any] | None
    definition_digest: str | None
    round: int
    record: RecordIndexes
    owner: str | None = None
    superseded_by: str | None = None
    supersedes: str | None = None
    credential: str | None = None
    settlement: SettlementView | None = None
    evidence: tuple[EvidenceView, ...] = ()
    settles_at: datetime | None = None  # approved then, unless somebody takes a review back
    undo_seconds: int = 0
    always_ask: bool = False
    escalation: EscalationView | None = None
    thread: str | None = None  # the conversation it belongs to
    given_up: bool = False  # approved, and never sent: its exchange came to nothing before

    def document(self) -> dict[str, Any]:
        """JSON-ready; times are RFC 3339 in UTC."""
        return jsonable(self)


@dataclass(frozen=True)
class ExchangeView:
    """One app request with its rounds, calls, decisions and executions."""

    id: str
    state: str
    app: str
    response_id: str | None
    model: str | None
    end_user: str | None
    streamed: bool
    background: bool
    rounds: int
    created_at: datetime
    finished_at: datetime | None
    upstream_ids: tuple[str, ...] = ()
    approval_requests: tuple[ApprovalView, ...] = ()

    def document(self) -> dict[str, Any]:
        """JSON-ready; times are RFC 3339 in UTC."""
        return jsonable(self)


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything an approval is bound to."""

    approval_id: str
    exchange_id: str
    server_id: str
    server_label: str
    server_url: str
    tool: str
    arguments: str
    definition_digest: str | None
    nonce: str


def digest(subject: Subject) -> str:
    """`sha256:` over the canonical form of what is approved.

    The argument string enters by the SHA-256 of its raw UTF-8 bytes. `nonce` keeps the digest
    from confirming a guess once the payload is erased.
    """
    facts = dataclasses.asdict(subject)
    facts["arguments"] = hashlib.sha256(raw_bytes(subject.arguments)).hexdigest()
    canonical = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def raw_bytes(arguments: str) -> bytes:
    """The bytes of an argument string."""
    return arguments.encode("utf-8")


def jsonable(view: Any) -> dict[str, Any]:
    """A dataclass as plain JSON."""
    plain: dict[str, Any] = orjson.loads(
        orjson.dumps(dataclasses.asdict(view), option=orjson.OPT_UTC_Z)
    )
    return plain
