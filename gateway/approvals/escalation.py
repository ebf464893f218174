"""Escalation: when nobody has decided by a set time, more groups may decide.

Every replica looks; a compare-and-set lets one of them do it. Nobody loses a right by it, and a
request that any reviewer may decide stays so: that it was escalated is recorded and shown.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals import lifecycle
from gateway.approvals.decisions import Approvals, subject
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.store.database import compare_and_set
from gateway.store.tables import ApprovalRequest


async def escalate_due(context: Approvals, *, now: datetime) -> int:
    """Escalate what nobody has decided in time; the number of requests."""
    due = (
        ApprovalRequest.state == lifecycle.PENDING,
        col(ApprovalRequest.escalates_at) <= now,
        col(ApprovalRequest.escalated_at).is_(None),
        col(ApprovalRequest.deadline) > now,
    )
    async with context.db.reading() as session:
        rows = (await session.exec(select(ApprovalRequest).where(*due).limit(100))).all()
    if not rows:
        return 0
    async with context.ledger.transaction() as tx:
        escalated = [row.id for row in rows if await _escalate(tx, row, now)]
    await tx.sealed()
    await context.wakeups.notify()
    return len(escalated)


async def _escalate(tx: Transaction, row: ApprovalRequest, now: datetime) -> bool:
    added = sorted(set(row.escalate_to or ()))
    groups = sorted({*row.reviewer_groups, *added}) if row.reviewer_groups else None
    changed = await compare_and_set(
        tx.session,
        update(ApprovalRequest)
        .where(
            col(ApprovalRequest.id) == row.id,
            col(ApprovalRequest.state) == lifecycle.PENDING,
            col(ApprovalRequest.escalated_at).is_(None),
        )
        .values(escalated_at=now, reviewer_groups=groups),
    )
    if changed != 1:
        return False
    tx.record(
        records.make(
            "approval.escalated",
            now=now,
            actor=SYSTEM,
            subject=subject(row),
            fields={"groups": added},
        )
    )
    return True
