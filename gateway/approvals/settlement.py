"""Settling: a person says what became of a call whose outcome could not be observed.

Never sends anything again: a call settled as not executed may be asked for anew by its app.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import lifecycle
from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.lifecycle import Standing
from gateway.approvals.reading import read, shown
from gateway.approvals.review import Reviewer
from gateway.approvals.views import ApprovalView
from gateway.audit import records
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity.roles import Permission, allowed
from gateway.store.database import compare_and_set
from gateway.store.tables import App, ApprovalRequest, Evidence, Exchange

_REASON_LIMIT = 2000
#: What a settlement makes of the execution.
_BECOMES = {"executed": "executed", "not_executed": "failed"}


@dataclass(frozen=True)
class Settling:
    """What a person found out: `outcome` executed | not_executed, and how they know."""

    approval_id: str
    outcome: str
    reason: str


async def settle(
    context: Approvals, person: Reviewer, settling: Settling, *, now: datetime
) -> ApprovalView:
    """Settle an unknown outcome. Waits for the signed head.

    Raises `Refused` without a reason, `NotAllowed`, `NotFound`, and `Conflict` when the outcome is
    known or settled, or when what Azure shows says otherwise.
    """
    settling = _checked(person, settling)
    async with context.ledger.transaction() as tx:
        found = await tx.session.exec(
            select(ApprovalRequest)
            .where(ApprovalRequest.id == settling.approval_id, shown())
            .with_for_update()
        )
        row = found.first()
        if row is None:
            raise NotFound(f"There is no approval request {settling.approval_id}.")
        await _refuse(tx.session, person, settling, row)
        changed = await compare_and_set(
            tx.session,
            update(ApprovalRequest)
            .where(
                col(ApprovalRequest.id) == row.id,
                col(ApprovalRequest.execution) == "unknown",
                col(ApprovalRequest.settlement).is_(None),
            )
            .values(**await _values(tx.session, context, person, settling, row, now)),
        )
        if changed != 1:
            raise _known(row)
        tx.record(
            records.make(
                "execution.observed",
                now=now,
                actor=person.actor,
                subject=subject(row),
                key=f"settled:{row.id}",
                fields={"outcome": _BECOMES[settling.outcome], "reconciled": True},
            )
        )
    await tx.sealed()
    await context.wakeups.notify()
    return await read(context.db, context.envelope, row.id)


def _checked(person: Reviewer, settling: Settling) -> Settling:
    if not allowed(person.roles, Permission.REVIEW_REQUESTS):
        raise NotAllowed("Only reviewers may say what became of a call.")
    reason = settling.reason.strip()
    if settling.outcome not in _BECOMES:
        raise Refused("'outcome' must be 'executed' or 'not_executed'.", param="outcome")
    if not reason or len(reason) > _REASON_LIMIT:
        raise Refused(f"Say how you know, in 1 to {_REASON_LIMIT} characters.", param="reason")
    return Settling(settling.approval_id, settling.outcome, reason)


async def _refuse(
    session: AsyncSession, person: Reviewer, settling: Settling, row: ApprovalRequest
) -> None:
    app = await session.get(App, row.app_id)
    standing = Standing(
        row.quorum_needed,
        frozenset(row.reviewer_groups or ()),
        row.require_reason,
        app.owner if app else None,
        row.end_user,
        row.step_up,
    )
    if (why := lifecycle.barrier(standing, person.email, person.groups)) is not None:
        raise NotAllowed(why, code="reviewer_excluded")
    if row.execution != "unknown":
        raise _known(row)
    seen = await session.exec(
        select(Evidence.id)
        .where(Evidence.approval_id == row.id, Evidence.finding == "executed")
        .limit(1)
    )
    if settling.outcome == "not_executed" and seen.first() is not None:
        raise Conflict(
            "Azure shows that this call was executed; look at the evidence.",
            code="evidence_contradicts",
        )


async def _values(
    session: AsyncSession,
    context: Approvals,
    person: Reviewer,
    settling: Settling,
    row: ApprovalRequest,
    now: datetime,
) -> dict[str, Any]:
    exchange = await session.get_one(Exchange, row.exchange_id)
    reason = None
    if exchange.data_key is not None:
        name, text = f"settlement:{row.id}", settling.reason.encode()
        reason = context.envelope.seal(exchange.data_key, exchange.id, name, text)
    return {
        "execution": _BECOMES[settling.outcome],
        "settlement": settling.outcome,
        "settled_at": now,
        "settled_by": person.email,
        "settlement_reason": reason,
    }


def _known(row: ApprovalRequest) -> Conflict:
    if row.settlement is not None and row.settled_at is not None:
        when = row.settled_at.strftime("%Y-%m-%d %H:%M:%S UTC")
        message = f"This outcome was settled as {row.settlement} by {row.settled_by} at {when}."
        return Conflict(message, code="already_settled")
    return Conflict("The outcome of this call is not unknown.", code="outcome_known")
