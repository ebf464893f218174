"""Releasing: what was decided is told to Azure once, and what became of it is recorded.

Law of the path: what changes the world is recorded first. A claim (`begin_sending`) is a
compare-and-set on state and fence; whoever loses it must not send.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.kept import Kept, claimed, hold_on
from gateway.audit import records
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict
from gateway.exchange.messages import Mismatch, Observed
from gateway.store.database import compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, Exchange
from gateway.telemetry import executions_total


async def begin_sending(
    context: Approvals, kept: Kept, released: Sequence[str], denied: Sequence[str], *, now: datetime
) -> str | None:
    """Claim the exchange and mark its approved calls as being sent, before a byte is.

    From here on a crash leaves their outcome unknown. Raises `Conflict` when the claim is lost
    or a call is not approved any more. Returns, once the signed head covers the marks, the
    receipt `index@size`.
    """
    async with context.ledger.transaction() as tx:
        changed = await compare_and_set(
            tx.session,
            update(Exchange)
            .where(
                col(Exchange.id) == kept.id,
                col(Exchange.state) == "holding",
                col(Exchange.fence) == kept.fence,
            )
            .values(state="sending", fence=kept.fence + 1),
        )
        if changed != 1:
            raise claimed(kept)
        marked = await compare_and_set(
            tx.session,
            update(ApprovalRequest)
            .where(
                col(ApprovalRequest.id).in_(released),
                col(ApprovalRequest.state) == "approved",
                col(ApprovalRequest.execution) == "not_sent",
            )
            .values(execution="sending"),
        )
        if marked != len(released):
            raise Conflict("A call of this round may not be sent.", code="not_releasable")
        for approval_id in (*released, *denied):
            row = await tx.session.get_one(ApprovalRequest, approval_id)
            tx.record(
                records.make(
                    "release.sending",
                    now=now,
                    actor=SYSTEM,
                    subject=subject(row),
                    key=f"{kept.id}:{kept.fence + 1}",
                    fields={
                        "fence": kept.fence + 1,
                        "approve": approval_id in released,
                        "digest": row.digest,
                        "round": row.round + 1,
                    },
                )
            )
    kept.state, kept.fence = "sending", kept.fence + 1
    kept.released = kept.fence
    receipt = await tx.sealed()
    return None if receipt is None else str(receipt)


async def observe(
    context: Approvals, kept: Kept, approval_id: str, observed: Observed, *, now: datetime
) -> None:
    """Record what became of a released call. Waits for the signed head.

    Raises `Superseded` when another process has claimed the exchange.
    """
    async with context.ledger.transaction() as tx:
        await hold_on(tx.session, kept)
        row = await tx.session.get_one(ApprovalRequest, approval_id)
        await tx.session.exec(
            update(ApprovalRequest)
            .where(
                col(ApprovalRequest.id) == approval_id,
                col(ApprovalRequest.execution) == "sending",
            )
            .values(execution=observed.outcome, arguments_match=observed.matches, executed_at=now)
        )
        fields: dict[str, Any] = {"outcome": observed.outcome}
        if kept.released is not None:
            fields["fence"] = kept.released
        if observed.matches is not None:
            fields["match"] = observed.matches
        tx.record(
            records.make(
                "execution.observed",
                now=now,
                actor=SYSTEM,
                subject=subject(row),
                key=f"{kept.id}:{kept.fence}",
                fields=fields,
            )
        )
    executions_total.labels(outcome=observed.outcome).inc()
    await tx.sealed()
    await context.wakeups.notify()


async def alarm(
    context: Approvals, kept: Kept, mismatch: Mismatch, approval_id: str | None, *, now: datetime
) -> None:
    """Record an execution that nobody approved, or another one than was approved."""
    about = {**kept.subject, "server": mismatch.server_label, "tool": mismatch.tool}
    if approval_id is not None:
        about["approval"] = approval_id
    async with context.ledger.transaction() as tx:
        tx.record(
            records.make(
                "execution.mismatch",
                now=now,
                actor=SYSTEM,
                subject=about,
                key=new_id("mis", now),
                fields={"code": mismatch.why, "fence": kept.fence},
            )
        )
    executions_total.labels(outcome="mismatch").inc()
    await tx.sealed()
