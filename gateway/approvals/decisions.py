"""Decisions: the one compare-and-set from pending, by reviewers, expiry or cancellation.

A decision is a row change and its audit record in one transaction, or it is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, update
from sqlmodel import col, select

from gateway.approvals import lifecycle
from gateway.approvals.kept import Kept, hold_on
from gateway.approvals.rulings import Rulings
from gateway.approvals.wakeups import Wakeups
from gateway.audit import records
from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import SYSTEM, Actor
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import ApprovalRequest, metadata
from gateway.telemetry import decision_seconds, decisions_total

_REQUESTS = metadata.tables[str(ApprovalRequest.__tablename__)]
# Built once, and without the mapper: each decision runs one of them.
_DECIDE = (
    update(_REQUESTS)
    .where(_REQUESTS.c.id == bindparam("which"), _REQUESTS.c.state == lifecycle.PENDING)
    .values(
        {
            name: bindparam(name)
            for name in ("state", "decided_at", "decided_by", "decision_record_id", "reason")
        }
    )
)
_EXPIRE = _DECIDE.where(_REQUESTS.c.settles_at.is_(None))


@dataclass(frozen=True)
class Approvals:
    """The collaborators of the use cases here."""

    ledger: Ledger
    envelope: Envelope
    wakeups: Wakeups
    rulings: Rulings = field(default_factory=Rulings)
    #: How old a sign-in may be where a rule asks for a fresh one.
    step_up: timedelta = timedelta(minutes=5)

    @property
    def db(self) -> Database:
        """Where the requests are."""
        return self.ledger.db


@dataclass(frozen=True)
class Decision:
    """The final outcome; `reason` is sealed already. `code` says what was out of the ordinary."""

    state: str
    by: str
    actor: Actor
    reason: bytes | None = None
    code: str | None = None


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
    fields: dict[str, Any] = {
        "decision": {
            "value": "approve" if decision.state == lifecycle.APPROVED else "deny",
            "by": decision.by,
        },
        "from": lifecycle.PENDING,
        "to": decision.state,
        "digest": row.digest,
    }
    if decision.code is not None:
        fields["code"] = decision.code
    record = records.make(
        "approval.decided",
        now=now,
        actor=decision.actor,
        subject=subject(row),
        fields=fields,
    )
    changed = await tx.session.exec(
        _EXPIRE if decision.by == "expiry" else _DECIDE,
        params={
            "which": row.id,
            "state": decision.state,
            "decided_at": now,
            "decided_by": decision.by,
            "decision_record_id": record.id,
            "reason": decision.reason,
        },
    )
    if changed.rowcount != 1:
        return False
    tx.record(record)
    decisions_total.labels(by=decision.by, outcome=decision.state).inc()
    decision_seconds.observe((now - row.created_at).total_seconds())
    return True


async def expire_due(context: Approvals, *, now: datetime) -> int:
    """Deny what nobody decided in time; the number of requests that expired."""
    return await _settle_pending(
        context,
        # What was approved in time is not late: its reviews may only still be taken back.
        (col(ApprovalRequest.deadline) <= now) & col(ApprovalRequest.settles_at).is_(None),
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
