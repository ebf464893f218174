"""Reviewing: take a person's review and, with it, perhaps the decision.

One transaction with its own audit records. A review is acknowledged only once a signed head of
the ledger covers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import lifecycle, views
from gateway.approvals.decisions import Approvals, Decision, decide, subject
from gateway.approvals.lifecycle import Standing
from gateway.approvals.reading import Opener, Query, listing, read, shown, wait
from gateway.approvals.views import ApprovalView
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity.roles import Permission, allowed
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.tables import App, ApprovalRequest, Exchange, Review

__all__ = ["Approvals", "Query", "Reviewer", "Submission", "listing", "read", "review", "wait"]

_REASON_LIMIT = 2000


@dataclass(frozen=True)
class Reviewer:
    """The person who reviews, and over which channel: web, api or cli."""

    user_id: str
    email: str
    roles: frozenset[str]
    groups: frozenset[str]
    channel: str
    auth: str

    @property
    def actor(self) -> Actor:
        """As audit records name the person."""
        return Actor("user", self.user_id, self.auth)


@dataclass(frozen=True)
class Submission:
    """A review as it was handed in. `digest` is that of what the person was shown."""

    approval_id: str
    verdict: str
    digest: str
    reason: str | None = None
    note: str | None = None


async def review(
    context: Approvals, reviewer: Reviewer, submission: Submission, *, now: datetime
) -> ApprovalView:
    """Take one person's review and, with it, perhaps the decision.

    Raises `Refused` (no verdict, a denial without a reason), `NotAllowed`, `NotFound`, and
    `Conflict` when the request was decided, has expired, or is not what the person was shown.
    Handing in the same review again changes nothing.
    """
    if not allowed(reviewer.roles, Permission.REVIEW_REQUESTS):
        raise NotAllowed("Only reviewers may decide about approval requests.")
    submission = _checked(submission)
    try:
        async with context.ledger.transaction() as tx:
            row = await _claimable(tx, context.envelope, reviewer, submission, now)
            if row is not None:
                await _take(tx, context.envelope, reviewer, submission, row, now)
    except IntegrityError:
        raise Conflict("You have already reviewed this request.", code="already_reviewed") from None
    if row is None:
        await _sealed_before(context, reviewer, submission.approval_id)
    await tx.sealed()
    await context.wakeups.notify([submission.approval_id])
    return await read(context.db, context.envelope, submission.approval_id)


async def _sealed_before(context: Approvals, reviewer: Reviewer, approval_id: str) -> None:
    """The same review again is acknowledged no sooner than the first time."""
    async with context.db.reading() as session:
        row = await session.get_one(ApprovalRequest, approval_id)
        found = await session.exec(
            select(Review.id).where(
                Review.approval_id == approval_id, Review.user_id == reviewer.user_id
            )
        )
        taken = [records.identify("approval.reviewed", subject(row), key) for key in found]
    await context.ledger.sealed(taken)


def _checked(submission: Submission) -> Submission:
    reason = (submission.reason or "").strip() or None
    note = (submission.note or "").strip() or None
    if submission.verdict not in {"approve", "deny"}:
        raise Refused("'verdict' must be 'approve' or 'deny'.", param="verdict")
    if submission.verdict == "deny" and reason is None:
        raise Refused("A denial needs a reason: the model and the app see it.", param="reason")
    for name, text in (("reason", reason), ("note", note)):
        if text is not None and len(text) > _REASON_LIMIT:
            raise Refused(f"'{name}' may have {_REASON_LIMIT} characters at most.", param=name)
    return Submission(submission.approval_id, submission.verdict, submission.digest, reason, note)


async def _claimable(
    tx: Transaction,
    envelope: Envelope,
    reviewer: Reviewer,
    submission: Submission,
    now: datetime,
) -> ApprovalRequest | None:
    """The locked row, or None when exactly this review has been taken before."""
    session = tx.session
    found = await session.exec(
        select(ApprovalRequest)
        .where(ApprovalRequest.id == submission.approval_id, shown())
        .with_for_update()
    )
    row = found.first()
    if row is None:
        raise NotFound(f"There is no approval request {submission.approval_id}.")
    reviews = (await session.exec(select(Review).where(Review.approval_id == row.id))).all()
    own = next((item for item in reviews if item.user_id == reviewer.user_id), None)
    if own is not None and (own.verdict, own.digest) == (submission.verdict, submission.digest):
        return None
    if row.state != lifecycle.PENDING:
        raise Conflict(_already(row, reviews), code="already_decided")
    if row.deadline <= now:
        raise Conflict("The deadline of this request has passed.", code="expired")
    if own is not None:
        raise Conflict("You have already reviewed this request.", code="already_reviewed")
    if submission.digest != row.digest:
        raise Conflict(
            "The request is not the one you were shown: read it again.", code="digest_stale"
        )
    # What is approved is recomputed from the stored payload: a row that was altered since the
    # page was rendered has another digest.
    if await _recomputed(session, envelope, row) != row.digest:
        raise Conflict(
            "The stored request does not match its digest; it cannot be decided.",
            code="digest_broken",
        )
    return row


async def _recomputed(session: AsyncSession, envelope: Envelope, row: ApprovalRequest) -> str:
    data_key = (
        await session.exec(select(Exchange.data_key).where(Exchange.id == row.exchange_id))
    ).first()
    payload = Opener(envelope, row.exchange_id, data_key).payload(row)
    return views.digest(
        views.Subject(
            approval_id=row.id,
            exchange_id=row.exchange_id,
            server_id=row.server_id,
            server_label=row.server_label,
            server_url=row.server_url,
            tool=row.tool,
            arguments=payload["arguments"],
            definition_digest=row.definition_digest,
            nonce=payload["nonce"],
        )
    )


def _already(row: ApprovalRequest, reviews: Sequence[Review]) -> str:
    when = row.decided_at.strftime("%Y-%m-%d %H:%M:%S UTC") if row.decided_at else "before"
    names = ", ".join(item.reviewer for item in reviews)
    who = names if row.decided_by == "reviewers" and names else row.decided_by
    return f"This request was {row.state} by {who} at {when}."


async def _take(
    tx: Transaction,
    envelope: Envelope,
    reviewer: Reviewer,
    submission: Submission,
    row: ApprovalRequest,
    now: datetime,
) -> None:
    session = tx.session
    exchange = await session.get_one(Exchange, row.exchange_id)
    app = await session.get(App, row.app_id)
    standing = Standing(
        row.quorum_needed,
        frozenset(row.reviewer_groups or ()),
        row.require_reason,
        app.owner if app else None,
        row.end_user,
    )
    if (why := lifecycle.barrier(standing, reviewer.email, reviewer.groups)) is not None:
        raise NotAllowed(why, code="reviewer_excluded")
    if standing.require_reason and submission.reason is None:
        raise Refused("The rule that holds this call asks for a reason.", param="reason")
    review_id = new_id("rev", now)
    seal = _Sealer(envelope, exchange)
    session.add(
        Review(
            id=review_id,
            approval_id=row.id,
            user_id=reviewer.user_id,
            reviewer=reviewer.email,
            verdict=submission.verdict,
            channel=reviewer.channel,
            reason=seal(f"review:{review_id}:reason", submission.reason),
            note=seal(f"review:{review_id}:note", submission.note),
            digest=submission.digest,
            created_at=now,
        )
    )
    await session.flush()
    tx.record(
        records.make(
            "approval.reviewed",
            now=now,
            actor=reviewer.actor,
            subject=subject(row),
            key=review_id,
            fields={
                "verdict": submission.verdict,
                "digest": submission.digest,
                "channel": reviewer.channel,
                "review": review_id,
            },
        )
    )
    verdicts = (
        await session.exec(select(Review.verdict).where(Review.approval_id == row.id))
    ).all()
    state = lifecycle.outcome(standing, verdicts)
    if state != lifecycle.PENDING:
        reason = submission.reason if state == lifecycle.DENIED else None
        decision = Decision(state, "reviewers", reviewer.actor, seal(f"reason:{row.id}", reason))
        if not await decide(tx, row, decision, now):
            raise Conflict("Somebody else has just decided this request.", code="already_decided")


@dataclass(frozen=True)
class _Sealer:
    envelope: Envelope
    exchange: Exchange

    def __call__(self, name: str, text: str | None) -> bytes | None:
        if text is None or self.exchange.data_key is None:
            return None
        return self.envelope.seal(self.exchange.data_key, self.exchange.id, name, text.encode())
