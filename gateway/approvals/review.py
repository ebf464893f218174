"""Reviewing: take a person's review and, with it, perhaps the decision; or take a review back.

One transaction with its own audit records. A review is acknowledged only once a signed head of
the ledger covers it. Who is asked, and what decides, is said by `lifecycle`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from gateway.approvals import case, grants, lifecycle
from gateway.approvals.case import Case, Reviewer
from gateway.approvals.decisions import Approvals, Decision, decide, subject
from gateway.approvals.grants import Terms
from gateway.approvals.lifecycle import Capacity, Vote
from gateway.approvals.reading import Query, listing, read, wait
from gateway.approvals.views import ApprovalView
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, GatepassError, NotFound, Refused
from gateway.identity.roles import Permission
from gateway.store.database import compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, Grant, Review, User, metadata

__all__ = [
    "Approvals",
    "Query",
    "Reviewer",
    "Submission",
    "listing",
    "read",
    "review",
    "settle_due",
    "wait",
    "withdraw",
]

_REASON_LIMIT = 2000
_REVIEW = insert(metadata.tables[str(Review.__tablename__)])


@dataclass(frozen=True)
class Submission:
    """A review as it was handed in. `digest` is that of what the person was shown.

    `remember` makes a grant of the decision that this review takes, within these terms.
    """

    approval_id: str
    verdict: str
    digest: str
    reason: str | None = None
    note: str | None = None
    remember: Terms | None = None


async def review(
    context: Approvals, reviewer: Reviewer, submission: Submission, *, now: datetime
) -> ApprovalView:
    """Take one person's review and, with it, perhaps the decision.

    Raises `Refused` (no verdict, a denial without a reason), `NotAllowed`, `NotFound`, and
    `Conflict` when the request was decided, has expired, or is not what the person was shown.
    Handing in the same review again changes nothing.
    """
    case.check_may(
        reviewer,
        Permission.REVIEW_REQUESTS,
        "Only reviewers may decide about approval requests.",
    )
    submission = checked(submission)
    late: GatepassError | None = None
    try:
        async with context.ledger.transaction() as tx:
            found = await case.lock(tx, context.envelope, submission.approval_id, reviewer)
            taken = await _taken_before(tx, found, submission)
            if not taken:
                late = await _take(context, tx, found, reviewer, submission, now)
    except IntegrityError:
        raise Conflict("You have already reviewed this request.", code="already_reviewed") from None
    if taken:
        await _sealed_before(context, reviewer, submission.approval_id)
    await tx.sealed()
    await context.wakeups.notify([submission.approval_id])
    if late is not None:
        raise late
    return await read(context.db, context.envelope, submission.approval_id)


async def withdraw(
    context: Approvals, reviewer: Reviewer, approval_id: str, *, now: datetime
) -> ApprovalView:
    """Take one's own approval back, while the request is pending.

    Raises `NotFound` without a review of one's own, `Conflict` once the request is decided.
    """
    late: GatepassError | None = None
    async with context.ledger.transaction() as tx:
        found = await case.lock(tx, context.envelope, approval_id, reviewer)
        if found.own is None:
            raise NotFound("You have no review of this request to take back.")
        if found.row.state != lifecycle.PENDING:
            raise Conflict(found.already(), code="already_decided")
        if await _settled(tx, found, now):
            late = _too_late()
        else:
            await take_back(tx, found, reviewer, now)
    await tx.sealed()
    await context.wakeups.notify([approval_id])
    if late is not None:
        raise late
    return await read(context.db, context.envelope, approval_id)


async def settle_due(context: Approvals, *, now: datetime) -> int:
    """Decide the requests whose reviews cannot be taken back any more; how many there were."""
    async with context.db.reading() as session:
        due = await session.exec(
            select(ApprovalRequest.id)
            .where(
                ApprovalRequest.state == lifecycle.PENDING,
                col(ApprovalRequest.settles_at) <= now,
            )
            .limit(100)
        )
        ids = due.all()
    for approval_id in ids:
        async with context.ledger.transaction() as tx:
            found = await case.lock(tx, context.envelope, approval_id)
            if found.row.state == lifecycle.PENDING:
                await _settled(tx, found, now)
        await tx.sealed()
    if ids:
        await context.wakeups.notify(ids)
    return len(ids)


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


def checked(submission: Submission) -> Submission:
    """The submission with its texts trimmed; raises `Refused` for what no review may be."""
    reason = (submission.reason or "").strip() or None
    note = (submission.note or "").strip() or None
    if submission.verdict not in {"approve", "deny"}:
        raise Refused("'verdict' must be 'approve' or 'deny'.", param="verdict")
    if submission.verdict == "deny" and submission.remember is not None:
        raise Refused("Only an approval can be remembered.", param="remember")
    if submission.verdict == "deny" and reason is None:
        raise Refused("A denial needs a reason: the model and the app see it.", param="reason")
    for name, text in (("reason", reason), ("note", note)):
        if text is not None and len(text) > _REASON_LIMIT:
            raise Refused(f"'{name}' may have {_REASON_LIMIT} characters at most.", param=name)
    return replace(submission, reason=reason, note=note)


async def _taken_before(tx: Transaction, found: Case, submission: Submission) -> bool:
    """Whether exactly this has been handed in before; raises `Conflict` for another review."""
    own = found.own
    if own is None or (own.verdict, own.digest) != (submission.verdict, submission.digest):
        return False
    if submission.remember is not None:
        made = await tx.session.exec(
            select(Grant.id).where(Grant.approval_id == submission.approval_id).limit(1)
        )
        if made.first() is None:
            raise Conflict(
                "You have already reviewed this request; remember it separately.",
                code="already_reviewed",
            )
    return True


async def _take(
    context: Approvals,
    tx: Transaction,
    found: Case,
    reviewer: Reviewer,
    submission: Submission,
    now: datetime,
) -> GatepassError | None:
    """Write the review, and the decision if there is one; an error that waits for the commit."""
    if found.row.state == lifecycle.PENDING and await _settled(tx, found, now):
        return _too_late()
    found.check_open(now)
    if found.own is not None:
        raise Conflict("You have already reviewed this request.", code="already_reviewed")
    found.check_digest(submission.digest)
    right = await found.right_of(tx.session, reviewer, found.votes, now)
    found.check_fresh(reviewer, context.step_up, now)
    if found.standing.require_reason and submission.reason is None:
        raise Refused("The rule that holds this call asks for a reason.", param="reason")
    await write(tx, found, reviewer, submission, right, now)
    mine = Vote(reviewer.user_id, reviewer.email, submission.verdict, right.on_behalf_of)
    state = lifecycle.outcome(found.standing, [*found.votes, mine])
    decided = await _conclude(tx, found, state, reviewer, submission, now)
    if submission.remember is not None:
        if not decided:
            raise Refused(
                "This review does not decide by itself; remember the approval once it is decided.",
                code="not_decided",
                param="remember",
            )
        await grants.remember(tx, found, reviewer, submission.remember, now)
    return None


async def _conclude(
    tx: Transaction,
    found: Case,
    state: str,
    reviewer: Reviewer,
    submission: Submission,
    now: datetime,
) -> bool:
    """Decide, or begin the time in which a review may be taken back; whether it is decided."""
    row = found.row
    if state == lifecycle.PENDING:
        return False
    if state == lifecycle.APPROVED and row.undo_seconds:
        if row.settles_at is None:
            await _settle_at(tx, row, now + timedelta(seconds=row.undo_seconds))
        return False
    reason = submission.reason if state == lifecycle.DENIED else None
    sealed = found.seal(f"reason:{row.id}", reason)
    await _decide(tx, row, Decision(state, "reviewers", reviewer.actor, sealed), now)
    return True


async def _settled(tx: Transaction, found: Case, now: datetime) -> bool:
    """Whether the time to take reviews back is over, and the request decided with that."""
    row = found.row
    if row.settles_at is None or row.settles_at > now:
        return False
    if lifecycle.outcome(found.standing, found.votes) != lifecycle.APPROVED:
        await _settle_at(tx, row, None)  # somebody who approved has been disabled since
        return False
    await _decide(tx, row, Decision(lifecycle.APPROVED, "reviewers", SYSTEM), now)
    return True


async def _decide(tx: Transaction, row: ApprovalRequest, decision: Decision, now: datetime) -> None:
    if not await decide(tx, row, decision, now):
        raise Conflict("Somebody else has just decided this request.", code="already_decided")


async def _settle_at(tx: Transaction, row: ApprovalRequest, when: datetime | None) -> None:
    await compare_and_set(
        tx.session,
        update(ApprovalRequest)
        .where(col(ApprovalRequest.id) == row.id, col(ApprovalRequest.state) == lifecycle.PENDING)
        .values(settles_at=when),
    )
    row.settles_at = when


async def write(
    tx: Transaction,
    found: Case,
    reviewer: Reviewer,
    submission: Submission,
    right: Capacity | None,
    now: datetime,
) -> str:
    """Write a review with its record; returns its id. Without a right it is an emergency."""
    review_id = new_id("rev", now)
    on_behalf_of = right.on_behalf_of if right else None
    await tx.session.exec(
        _REVIEW,
        params={
            "id": review_id,
            "approval_id": found.row.id,
            "user_id": reviewer.user_id,
            "reviewer": reviewer.email,
            "verdict": submission.verdict,
            "channel": reviewer.channel,
            "on_behalf_of": on_behalf_of,
            "emergency": right is None,
            "reason": found.seal(f"review:{review_id}:reason", submission.reason),
            "note": found.seal(f"review:{review_id}:note", submission.note),
            "digest": submission.digest,
            "created_at": now,
        },
    )
    fields: dict[str, Any] = {
        "verdict": submission.verdict,
        "digest": submission.digest,
        "channel": reviewer.channel,
        "review": review_id,
    }
    if on_behalf_of is not None:
        other = await tx.session.exec(select(User.id).where(User.email == on_behalf_of))
        fields["instead_of"] = other.one()
    if found.standing.step_up and reviewer.authenticated_at is not None:
        fields["authenticated"] = records.timestamp(reviewer.authenticated_at)
    tx.record(
        records.make(
            "approval.reviewed",
            now=now,
            actor=reviewer.actor,
            subject=subject(found.row),
            key=review_id,
            fields=fields,
        )
    )
    return review_id


async def take_back(tx: Transaction, found: Case, reviewer: Reviewer, now: datetime) -> None:
    """Withdraw the reviewer's own review, with its record; others have to agree anew."""
    own = found.own
    if own is None:
        return
    changed = await compare_and_set(
        tx.session,
        update(Review)
        .where(col(Review.id) == own.review_id, col(Review.withdrawn_at).is_(None))
        .values(withdrawn_at=now),
    )
    if changed != 1:
        raise Conflict("This review was taken back already.", code="already_withdrawn")
    left = [vote for vote in found.votes if vote.user_id != reviewer.user_id]
    still = lifecycle.outcome(found.standing, left) == lifecycle.APPROVED
    if found.row.settles_at is not None and not still:
        await _settle_at(tx, found.row, None)
    tx.record(
        records.make(
            "review.withdrawn",
            now=now,
            actor=reviewer.actor,
            subject=subject(found.row),
            key=own.review_id,
            fields={
                "review": own.review_id,
                "verdict": own.verdict,
                "channel": reviewer.channel,
            },
        )
    )


def _too_late() -> Conflict:
    return Conflict(
        "The time to change this decision is over: the request was approved.",
        code="already_decided",
    )
