"""Approval requests and exchanges as JSON: list, read, review, wait.

Parses, calls one use case, renders; holds no rule about who may decide what.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import After, House, Limit, may
from gateway.api.grants import TermsIn, reviewer_of
from gateway.approvals import emergency, history, review, settlement
from gateway.approvals.review import Submission
from gateway.approvals.settlement import Settling
from gateway.identity.login import Principal
from gateway.identity.roles import Permission

State = Literal["pending", "approved", "denied", "expired", "cancelled"]
Execution = Literal["not_sent", "sending", "executed", "failed", "unknown"]


class ServerOut(BaseModel):
    """The registered server a call goes to."""

    label: str
    url: str


class RiskSignalOut(BaseModel):
    """A named warning on a call, and why it is given."""

    model_config = ConfigDict(extra="allow")
    code: str
    sentence: str


class QuorumOut(BaseModel):
    """How many approving reviews make a decision, and how many there are."""

    needed: int
    given: int


class ReviewOut(BaseModel):
    """One person's verdict; `note` never leaves the people's side."""

    model_config = ConfigDict(extra="allow")
    reviewer: str
    verdict: Literal["approve", "deny"]
    reason: str | None = None
    note: str | None = None
    at: datetime
    channel: str
    on_behalf_of: str | None = Field(None, description="For whom the reviewer stood in.")
    emergency: bool = False
    counts: bool = Field(True, description="False once the person may not sign in any more.")


class EscalationOut(BaseModel):
    """When more groups may decide, and since when they may."""

    at: datetime
    to: list[str]
    since: datetime | None


class DecisionOut(BaseModel):
    """How the request ended, and by whom."""

    model_config = ConfigDict(extra="allow")
    by: str
    verdict: str
    reason: str | None = None
    at: datetime
    grant: str | None = Field(None, description="The remembered approval that answered.")


class ApprovalOut(BaseModel):
    """One held call put before reviewers: everything its page shows."""

    model_config = ConfigDict(extra="allow")
    id: str
    state: State
    exchange_id: str
    app: str
    end_user: str | None = Field(description="Whom the app says it acts for; a claim.")
    server: ServerOut
    tool: str
    arguments: str = Field(description="The exact string the model wrote.")
    digest: str = Field(description="Send it back with the review: it names what was shown.")
    risk_signals: list[RiskSignalOut]
    rule: str | None
    quorum: QuorumOut
    step_up: bool = Field(False, description="Whether who reviews it must have just signed in.")
    created_at: datetime
    deadline: datetime
    reviews: list[ReviewOut]
    decision: DecisionOut | None
    execution: Execution
    given_up: bool = Field(
        False,
        description="Approved, and never to be sent: what asked for it came to nothing before.",
    )
    settles_at: datetime | None = Field(
        None, description="Approved then, unless somebody takes a review back."
    )
    escalation: EscalationOut | None = None


class ApprovalPage(BaseModel):
    """Approval requests, those that wait by soonest deadline first."""

    items: list[ApprovalOut]
    next: str | None


class SettlementIn(BaseModel):
    """What became of a call whose outcome was unknown, and how you know."""

    model_config = ConfigDict(extra="forbid", strict=True)
    outcome: Literal["executed", "not_executed"]
    reason: str = Field(min_length=1, max_length=2000)


class ExchangeOut(BaseModel):
    """One app request with its rounds, calls, decisions and executions."""

    model_config = ConfigDict(extra="allow")
    id: str


class ExchangePage(BaseModel):
    """Exchanges, newest first."""

    items: list[ExchangeOut]
    next: str | None


class ReviewIn(BaseModel):
    """A verdict on exactly what `digest` names."""

    model_config = ConfigDict(extra="forbid", strict=True)
    verdict: Literal["approve", "deny"]
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    reason: str | None = Field(
        None, max_length=2000, description="Required to deny; the model and the app see it."
    )
    note: str | None = Field(
        None, max_length=4000, description="For colleagues; never sent to the model or the app."
    )
    remember: TermsIn | None = Field(
        None, description="Make a grant of the decision that this review takes."
    )


class EmergencyIn(BaseModel):
    """One approval despite quorum and groups, of exactly what `digest` names."""

    model_config = ConfigDict(extra="forbid", strict=True)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    reason: str = Field(min_length=1, max_length=2000, description="Why this cannot wait.")


class Filters(BaseModel):
    """Which approval requests to list."""

    model_config = ConfigDict(extra="forbid")
    state: State | None = None
    app: str | None = Field(None, max_length=200)
    server: str | None = Field(None, max_length=200)
    tool: str | None = Field(None, max_length=200)
    execution: Execution | None = None
    after: str | None = Field(None, max_length=200, description="`next` of the previous page.")
    limit: int = Field(50, ge=1, le=200)


router = APIRouter(tags=["requests"])
Reader = Annotated[Principal, Depends(may(Permission.READ_REQUESTS))]
Decider = Annotated[Principal, Depends(may(Permission.REVIEW_REQUESTS))]
Breaker = Annotated[Principal, Depends(may(Permission.BREAK_GLASS))]
ExchangeReader = Annotated[Principal, Depends(may(Permission.READ_EXCHANGES))]


@router.get("/approval-requests", response_model=ApprovalPage)
async def list_requests(house: House, _who: Reader, filters: Annotated[Filters, Query()]) -> Any:
    """Approval requests, filtered; those that wait by soonest deadline first."""
    page = await review.listing(
        house.db, house.envelope, query=review.Query(**filters.model_dump())
    )
    return {"items": [item.document() for item in page.items], "next": page.next}


@router.get("/approval-requests/{approval_id}", response_model=ApprovalOut)
async def read_request(house: House, _who: Reader, approval_id: str) -> Any:
    """Everything the request's page shows, with the digest to send back."""
    return (await review.read(house.db, house.envelope, approval_id)).document()


@router.post(
    "/approval-requests/{approval_id}/reviews", status_code=201, response_model=ApprovalOut
)
async def submit_review(house: House, who: Decider, approval_id: str, body: ReviewIn) -> Any:
    """Approve or deny. 409 says who decided and when, or that the digest is stale."""
    submission = Submission(
        approval_id=approval_id,
        verdict=body.verdict,
        digest=body.digest,
        reason=body.reason,
        note=body.note,
        remember=body.remember.terms() if body.remember else None,
    )
    view = await review.review(house.approvals, reviewer_of(who), submission, now=house.clock())
    return view.document()


@router.post("/approval-requests/{approval_id}/reviews/withdraw", response_model=ApprovalOut)
async def withdraw_review(house: House, who: Decider, approval_id: str) -> Any:
    """Take one's own review back, while the request is pending. 409 once it is decided."""
    view = await review.withdraw(house.approvals, reviewer_of(who), approval_id, now=house.clock())
    return view.document()


@router.post(
    "/approval-requests/{approval_id}/break-glass", status_code=201, response_model=ApprovalOut
)
async def break_the_glass(house: House, who: Breaker, approval_id: str, body: EmergencyIn) -> Any:
    """Approve alone, in an emergency. It raises an alarm that somebody else must close in time."""
    view = await emergency.break_glass(
        house.approvals,
        reviewer_of(who),
        Submission(approval_id, "approve", body.digest, body.reason),
        look_into=house.settings.break_glass_review,
        now=house.clock(),
    )
    return view.document()


@router.post("/approval-requests/{approval_id}/settlement", response_model=ApprovalOut)
async def settle_outcome(house: House, who: Decider, approval_id: str, body: SettlementIn) -> Any:
    """Say what became of a call of unknown outcome. 409 when that is known or settled."""
    settling = Settling(approval_id, body.outcome, body.reason)
    view = await settlement.settle(house.approvals, reviewer_of(who), settling, now=house.clock())
    return view.document()


@router.get("/approval-requests/{approval_id}/wait", response_model=ApprovalOut)
async def wait_for_change(
    house: House,
    _who: Reader,
    approval_id: str,
    timeout: Annotated[float, Query(ge=0, le=60, description="Seconds.")] = 30.0,  # noqa: ASYNC109  part of the contract
) -> Any:
    """Long poll: answers when the request changes, or as it is when the time is up."""
    return (await review.wait(house.approvals, approval_id, timeout)).document()


@router.get("/exchanges", response_model=ExchangePage)
async def list_exchanges(
    house: House, _who: ExchangeReader, after: After = None, limit: Limit = 50
) -> Any:
    """Exchanges, newest first."""
    page = await history.listing(house.db, after=after, limit=limit)
    return {"items": [item.document() for item in page.items], "next": page.next}


@router.get("/exchanges/{exchange_id}", response_model=ExchangeOut)
async def read_exchange(house: House, _who: ExchangeReader, exchange_id: str) -> Any:
    """One app request with its rounds, calls, decisions and executions."""
    return (await history.read(house.db, house.envelope, exchange_id)).document()
