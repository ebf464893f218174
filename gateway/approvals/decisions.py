"""Decisions: the one compare-and-set from pending, by reviewers, expiry or cancellation.

A decision is a row change and its audit record in one transaction, or it is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals import lifecycle
from gateway.approvals.kept import Kept, hold_on
from gateway.approvals.wakeups import Wakeups
from gateway.audit import records
from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import SYSTEM, Actor
from gateway.store.database import Database, compare_and_set
from gateway.store.envelope import Envelope
from gateway.store.tables import ApprovalRequest
from gateway.telemetry import decision_seconds, decisions_total


@dataclass(frozen=True)
class Approvals:
    """The collaborators of the use cases here."""

    ledger: Ledger
    envelope: Envelope
    wakeups: Wakeups

    @property
    def db(self) -> Database:
        """Where the requests are."""
        return self.ledger.db


@dataclass(frozen=True)
class Decision:
    """The final outcome; `reason` is sealed already."""

    state: str
    by: str
    actor: Actor
    reason: bytes | None = None


def subject(row: ApprovalRequest) -> dict[str, str]:
    """How audit records name a request."""
    return {
        "approval": row.id,
        "exchange": row.exchange_id,
        "app": row.app_name,
        "server": row.server_label,
        "tool": row.tool,
    }


async def decide(tx: Transaction, row: ApprovalRequest, decision: Decision, now: datetime) -> bool:
    """Compare-and-set from pending, with its record; False when someone was first."""
    record = records.make(
        "approval.decided",
        now=now,
        actor=decision.actor,
        subject=subject(row),
        fields={
            "decision": {
                "value": "approve" if decision.state == lifecycle.APPROVED else "deny",
                "by": decision.by,
            },
            "from": lifecycle.PENDING,
            "to": decision.state,
            "digest": row.digest,
        },
    )
    changed = await compare_and_set(
        tx.session,
        update(ApprovalRequest)
        .where(col(ApprovalRequest.id) == row.id, col(ApprovalRequest.state) == lifecycle.PENDING)
        .values(
            state=decision.state,
            decided_at=now,
            decided_by=decision.by,
            decision_record_id=record.id,
            reason=decision.reason,
        ),
    )
    if changed != 1:
        return False
    tx.record(record)
    decisions_total.labels(by=decision.by, outcome=decision.state).inc()
    decision_seconds.observe((now - row.created_at).total_seconds())
    return True


async def expire_due(context: Approvals, *, now: datetime) -> int:
    """Deny what nobody decided in time; the number of requests that expired."""
    return await _settle_pending(
        context,
        col(ApprovalRequest.deadline) <= now,
        Decision(lifecycle.EXPIRED, "expiry", SYSTEM),
        now,
    )


async def cancel(
    context: Approvals,
    exchange_id: str,
    *,
    actor: Actor = SYSTEM,
    kept: Kept | None = None,
    now: datetime,
) -> int:
    """Withdraw the pending requests of an exchange that nobody waits for any more.

    `kept`: only as long as it is ours; raises `Superseded`.
    """
    return await _settle_pending(
        context,
        col(ApprovalRequest.exchange_id) == exchange_id,
        Decision(lifecycle.CANCELLED, "cancelled", actor),
        now,
        kept,
    )


async def _settle_pending(
    context: Approvals, which: Any, decision: Decision, now: datetime, kept: Kept | None = None
) -> int:
    async with context.db.reading() as session:
        found = await session.exec(
            select(ApprovalRequest)
            .where(ApprovalRequest.state == lifecycle.PENDING, which)
            .limit(500)
        )
        rows = found.all()
    if not rows:
        return 0
    async with context.ledger.transaction() as tx:
        if kept is not None:
            await hold_on(tx.session, kept)
        settled = [row.id for row in rows if await decide(tx, row, decision, now)]
    await tx.sealed()
    await context.wakeups.notify(settled)
    return len(settled)
