"""Releasing: what was decided is told to Azure once, and what became of it is recorded.

Law of the path: what changes the world is recorded first. A claim (`begin_sending`) is a
compare-and-set on state and fence, and looks once more at everything the decisions rest on;
whoever loses it, or is told to wait or to ask anew, must not send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlmodel import col, select

from gateway.approvals import alarms, late, standing
from gateway.approvals.alarms import About
from gateway.approvals.decisions import Approvals, subject
from gateway.approvals.kept import Kept, claimed
from gateway.approvals.late import Finding
from gateway.approvals.standing import Fallen, Opened, Waits
from gateway.audit import records
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict
from gateway.exchange.messages import Mismatch, Observed
from gateway.registry import pauses
from gateway.registry.changes import changing
from gateway.registry.directory import Directory, View
from gateway.registry.versions import hold_config
from gateway.store.database import compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import ApprovalRequest, Exchange
from gateway.telemetry import executions_total

#: What the alarm about an execution is called, by what the machine says of it.
_CODES = {
    "executed without an approval": "executed_without_approval",
    "not released, or twice": "not_released_or_twice",
    "not the call approved": "arguments_differ",
    "called without asking, and its definition has changed": "definition_changed",
}


@dataclass(frozen=True)
class Sending:
    """What a round is to tell Azure: the ids of approvals, and of denials.

    `opened` are the secrets that go along, by server id; None when they cannot be had, so that it
    may only be found that nothing is to be sent.
    """

    released: Sequence[str]
    denied: Sequence[str] = ()
    opened: Mapping[str, Opened] | None = None


@dataclass(frozen=True)
class Claimed:
    """It may be sent; `receipt` is `index@size` of the signed head that covers the marks."""

    receipt: str | None


@dataclass(frozen=True)
class Fell:
    """These approvals do not stand any more; nothing was claimed."""

    fallen: tuple[Fallen, ...]


@dataclass(frozen=True)
class Stale:
    """The secrets have to be opened anew: a server or a secret is another one by now."""


Claim = Claimed | Waits | Fell | Stale


@dataclass(frozen=True)
class _Terms:
    """Under what a call is released: the configuration, and the secret that goes along."""

    view: View
    credential: str | None


async def begin_sending(
    context: Approvals, kept: Kept, sending: Sending, directory: Directory, *, now: datetime
) -> Claim:
    """Claim the exchange and mark its approved calls as being sent, before a byte is.

    Everything the decisions rest on is looked at in the same transaction. Only after `Claimed`
    may the round be sent, once: from here on a crash leaves the outcome unknown. Raises
    `Conflict` when the claim is lost or a call is not approved any more.
    """
    while (claim := await _begin(context, kept, sending, directory.view, now)) is None:
        await directory.refresh()
    return claim


async def _begin(
    context: Approvals, kept: Kept, sending: Sending, view: View, now: datetime
) -> Claim | None:
    """The same under `view`; None when that is not the configuration in force any more."""
    harder = await standing.harder(context, sending.released, view, now)
    async with context.ledger.transaction() as tx:
        if await hold_config(tx.session) != view.version:
            return None
        rows = await standing.approved(tx.session, sending.released)
        match await standing.examine(tx.session, kept, rows, harder, view, now):
            case tuple() as fallen:
                return Fell(fallen)
            case Waits() as waits:
                return waits
            case None:
                pass
        secrets = await _secrets(tx, sending, view)
        if secrets is None:
            return Stale()
        await _claim(tx, kept)
        for row in rows:
            await _mark(tx, kept, row, _Terms(view, secrets.get(row.server_id)), now)
        for approval_id in sending.denied:
            row = await tx.session.get_one(ApprovalRequest, approval_id)
            _record(tx, kept, row, {"approve": False}, now)
    kept.state, kept.fence = "sending", kept.fence + 1
    kept.released = kept.fence
    receipt = await tx.sealed()
    return Claimed(None if receipt is None else str(receipt))


async def _claim(tx: Transaction, kept: Kept) -> None:
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


async def _secrets(
    tx: Transaction, sending: Sending, view: View
) -> Mapping[str, str | None] | None:
    if sending.opened is None:
        return None
    return await standing.carried(tx.session, sending.opened, view)


async def _mark(
    tx: Transaction, kept: Kept, row: ApprovalRequest, terms: _Terms, now: datetime
) -> None:
    credential = terms.credential
    marked = await compare_and_set(
        tx.session,
        update(ApprovalRequest)
        .where(
            col(ApprovalRequest.id) == row.id,
            col(ApprovalRequest.state) == "approved",
            col(ApprovalRequest.execution) == "not_sent",
            col(ApprovalRequest.superseded_by).is_(None),
        )
        .values(execution="sending", released_by=kept.id, credential=credential),
    )
    if marked != 1:
        raise Conflict("A call of this round may not be sent.", code="not_releasable")
    fields: dict[str, Any] = {"approve": True, "policy": terms.view.policy_digest}
    if row.definition_digest is not None:
        fields["tooldef"] = row.definition_digest
    if credential is not None:
        fields["credential"] = credential
    _record(tx, kept, row, fields, now)


def _record(
    tx: Transaction, kept: Kept, row: ApprovalRequest, fields: dict[str, Any], now: datetime
) -> None:
    fence = kept.fence + 1
    common: dict[str, Any] = {"fence": fence, "digest": row.digest, "round": row.round + 1}
    tx.record(
        records.make(
            "release.sending",
            now=now,
            actor=SYSTEM,
            subject=subject(row),
            key=f"{kept.id}:{fence}",
            fields={**common, **fields},
        )
    )


async def observe(
    context: Approvals, kept: Kept, approval_id: str, observed: Observed, *, now: datetime
) -> None:
    """Record what became of a released call. Waits for the signed head.

    Raises `Superseded` when another process has claimed the exchange: the claim under which it
    was sent is not the last one any more. What is reported then is kept as evidence all the same.
    """
    fence = select(Exchange.fence).where(col(Exchange.id) == kept.id).scalar_subquery()
    async with context.ledger.transaction() as tx:
        row = await tx.session.get_one(ApprovalRequest, approval_id)
        changed = await compare_and_set(
            tx.session,
            update(ApprovalRequest)
            .where(
                col(ApprovalRequest.id) == approval_id,
                col(ApprovalRequest.execution) == "sending",
                fence == kept.fence,
            )
            .values(execution=observed.outcome, arguments_match=observed.matches, executed_at=now),
        )
        if changed == 1:
            tx.record(_observation(kept, row, observed, now))
    if changed != 1:
        if observed.outcome in late.TELLING:
            finding = Finding(observed.outcome, "a late answer", observed.matches)
            await late.note(context, approval_id, finding, now=now)
        raise claimed(kept)
    executions_total.labels(outcome=observed.outcome).inc()
    await tx.sealed()
    await context.wakeups.notify()


def _observation(
    kept: Kept, row: ApprovalRequest, observed: Observed, now: datetime
) -> records.Record:
    fields: dict[str, Any] = {"outcome": observed.outcome, **_fence(kept)}
    if observed.matches is not None:
        fields["match"] = observed.matches
    return records.make(
        "execution.observed",
        now=now,
        actor=SYSTEM,
        subject=subject(row),
        key=f"{kept.id}:{kept.fence}",
        fields=fields,
    )


async def mismatch(
    context: Approvals, kept: Kept, found: Mismatch, approval_id: str | None, *, now: datetime
) -> None:
    """An execution that nobody approved, or another one than was approved: an alarm, and its app
    is paused. Nothing further of this exchange is released. Waits for the signed head.
    """
    code = _CODES.get(found.why, "mismatch")
    about = About(
        "mismatch", code, kept.app_name, kept.id, approval_id, found.server_label, found.tool
    )
    async with changing(context.ledger, SYSTEM, now) as change:
        change.tx.record(
            records.make(
                "execution.mismatch",
                now=now,
                actor=SYSTEM,
                subject=about.subject,
                key=new_id("mis", now),
                fields={"code": code, **_fence(kept)},
            )
        )
        alarms.add(change.tx, about, now=now)
        reason = "Something else was executed than had been approved."
        await pauses.pause_app(change, kept.app_name, reason)
    executions_total.labels(outcome="mismatch").inc()
    await change.tx.sealed()
    await context.wakeups.notify()


def _fence(kept: Kept) -> dict[str, int]:
    """The claim under which the calls were sent, where it was ours."""
    return {} if kept.released is None else {"fence": kept.released}
