"""Breaking the glass: one person approves one request alone, and somebody else looks into it.

Despite quorum and groups, never despite a rule that denies and never for oneself. It raises an
alarm that another person must close in time; one that is late is recorded once.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sqlmodel import col, select

from gateway.approvals import alarms, case, lifecycle, review
from gateway.approvals.alarms import About
from gateway.approvals.case import Case, Reviewer
from gateway.approvals.decisions import Approvals, Decision, decide, subject
from gateway.approvals.review import Submission
from gateway.approvals.views import ApprovalView
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, NotAllowed, Refused
from gateway.identity.roles import Permission
from gateway.store.tables import Alarm, AuditRecord


async def break_glass(
    context: Approvals,
    reviewer: Reviewer,
    submission: Submission,
    *,
    look_into: timedelta,
    now: datetime,
) -> ApprovalView:
    """Approve a request alone. `look_into` is how soon somebody must have closed the alarm.

    Raises `Refused` without a reason, `NotAllowed` without the role and for one's own requests,
    `Conflict` when it is decided already or is not what was shown.
    """
    case.check_may(
        reviewer, Permission.BREAK_GLASS, "Only who holds the role break_glass may do this."
    )
    submission = review.checked(replace(submission, verdict="approve", remember=None))
    if submission.reason is None:
        raise Refused("Say why this cannot wait: somebody will look into it.", param="reason")
    async with context.ledger.transaction() as tx:
        found = await case.lock(tx, context.envelope, submission.approval_id, reviewer)
        found.check_open(now)
        found.check_digest(submission.digest)
        if (why := lifecycle.conflict(found.standing, reviewer.person)) is not None:
            raise NotAllowed(why, code="reviewer_excluded")
        found.check_fresh(reviewer, context.step_up, now)
        await review.take_back(tx, found, reviewer, now)
        review_id = await review.write(tx, found, reviewer, submission, None, now)
        _alarm(tx, found, reviewer, review_id, due_at=now + look_into, now=now)
        decision = Decision(lifecycle.APPROVED, "reviewers", reviewer.actor, code="break_glass")
        if not await decide(tx, found.row, decision, now):
            raise Conflict("Somebody else has just decided this request.", code="already_decided")
    await tx.sealed()
    await context.wakeups.notify([submission.approval_id])
    return await review.read(context.db, context.envelope, submission.approval_id)


def _alarm(
    tx: Transaction,
    found: Case,
    reviewer: Reviewer,
    review_id: str,
    *,
    due_at: datetime,
    now: datetime,
) -> None:
    row = found.row
    about = About(
        "break_glass",
        "break_glass",
        row.app_name,
        row.exchange_id,
        row.id,
        row.server_label,
        row.tool,
    )
    alarm_id = alarms.add(tx, about, raised_by=reviewer.actor, due_at=due_at, now=now)
    tx.record(
        records.make(
            "break_glass.used",
            now=now,
            actor=reviewer.actor,
            subject=subject(row),
            key=review_id,
            fields={
                "review": review_id,
                "digest": row.digest,
                "channel": reviewer.channel,
                "quorum": row.quorum_needed,
                "alarm": alarm_id,
                "expires": records.timestamp(due_at),
            },
        )
    )


async def note_overdue(context: Approvals, *, now: datetime) -> int:
    """Record, once each, the alarms that were not closed in time; how many are new."""
    async with context.db.reading() as session:
        found = await session.exec(
            select(Alarm)
            .where(col(Alarm.closed_at).is_(None), col(Alarm.due_at) <= now)
            .order_by(col(Alarm.due_at))
            .limit(200)
        )
        told = {record.id: record for record in (_overdue(row, now) for row in found)}
        known = await session.exec(
            select(AuditRecord.id).where(col(AuditRecord.id).in_(list(told)))
        )
        for record_id in known:
            del told[record_id]
    noted = 0
    for record in told.values():
        try:
            async with context.ledger.transaction() as tx:
                tx.record(record)
        except Conflict:
            continue  # another replica was first
        noted += 1
    return noted


def _overdue(row: Alarm, now: datetime) -> records.Record:
    named = {
        "app": row.app_name,
        "exchange": row.exchange_id,
        "approval": row.approval_id,
        "server": row.server_label,
        "tool": row.tool,
    }
    return records.make(
        "alarm.overdue",
        now=now,
        actor=SYSTEM,
        subject={name: value for name, value in named.items() if value is not None},
        key=row.id,
        fields={
            "alarm": row.id,
            "what": [row.kind],
            "deadline": records.timestamp(row.due_at or now),
        },
    )
