"""What a policy in shadow would have said: recorded beside what was said, and nothing more.

Nothing here can change an outcome: the ruling is made before, and a shadow that cannot speak is
silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlmodel import col, select

from gateway.approvals.decisions import subject
from gateway.approvals.rulings import Rulings
from gateway.audit import records
from gateway.audit.fields import JSONValue
from gateway.audit.ledger import Transaction
from gateway.audit.records import SYSTEM
from gateway.policy import CallFacts, Policy, Ruling
from gateway.store.database import Database
from gateway.store.tables import ApprovalRequest, ShadowRuling
from gateway.telemetry import log


@dataclass(frozen=True)
class Told:
    """One call of which a shadow says something else than what was said."""

    approval_id: str
    app: str
    server: str
    tool: str
    asked_at: datetime
    was: str
    would_be: str
    rule: str | None
    why: str


@dataclass(frozen=True)
class Summary:
    """What a version in shadow has said so far. `counts` is (was, would be, how many)."""

    calls: int
    differing: int
    counts: tuple[tuple[str, str, int], ...]
    items: tuple[Told, ...]
    next: str | None


async def ruling(
    rulings: Rulings, policy: Policy | None, call: CallFacts, now: datetime
) -> Ruling | None:
    """What `policy` would say; None while there is none, and whenever it fails to say it."""
    if policy is None:
        return None
    try:
        return await rulings.rule(policy, call, now)
    except Exception as error:
        log.warning("shadow.failed", why=type(error).__name__)
        return None


def record(
    tx: Transaction,
    row: ApprovalRequest,
    shadow: tuple[str, Ruling],
    said: Ruling,
    now: datetime,
) -> None:
    """Keep what the shadow (its digest and ruling) says of a call, in the caller's transaction."""
    digest, would_be = shadow
    tx.session.add(
        ShadowRuling(
            approval_id=row.id,
            policy_digest=digest,
            effect=str(would_be.effect),
            rule=would_be.rule,
            why=would_be.why[:400],
            was=str(said.effect),
            created_at=now,
        )
    )
    fields: dict[str, JSONValue] = {
        "effect": str(would_be.effect),
        "why": would_be.why[:400],
        "policy": digest,
    }
    if would_be.rule is not None:
        fields["rule"] = would_be.rule[:200]
    tx.record(
        records.make("call.shadowed", now=now, actor=SYSTEM, subject=subject(row), fields=fields)
    )


async def summary(
    db: Database, digest: str, *, after: str | None = None, limit: int = 50
) -> Summary:
    """Counts, and the calls of which the shadow says something else, newest first."""
    of_shadow = col(ShadowRuling.policy_digest) == digest
    differs = select(ShadowRuling, ApprovalRequest).join(
        ApprovalRequest, col(ApprovalRequest.id) == col(ShadowRuling.approval_id)
    )
    differs = differs.where(of_shadow, col(ShadowRuling.effect) != col(ShadowRuling.was))
    if after is not None:
        # Ids grow with time.
        differs = differs.where(col(ShadowRuling.approval_id) < after)
    pairs = select(ShadowRuling.was, ShadowRuling.effect, func.count()).where(of_shadow)
    pairs = pairs.group_by(col(ShadowRuling.was), col(ShadowRuling.effect))
    async with db.reading() as session:
        counts = sorted((await session.exec(pairs)).all())
        order = col(ShadowRuling.approval_id).desc()
        rows = (await session.exec(differs.order_by(order).limit(limit + 1))).all()
    return Summary(
        calls=sum(number for _, _, number in counts),
        differing=sum(number for was, effect, number in counts if was != effect),
        counts=tuple((was, effect, number) for was, effect, number in counts),
        items=tuple(_told(*row) for row in rows[:limit]),
        next=rows[limit - 1][0].approval_id if len(rows) > limit else None,
    )


def _told(shadow: ShadowRuling, row: ApprovalRequest) -> Told:
    return Told(
        approval_id=row.id,
        app=row.app_name,
        server=row.server_label,
        tool=row.tool,
        asked_at=row.created_at,
        was=shadow.was,
        would_be=shadow.effect,
        rule=shadow.rule,
        why=shadow.why,
    )
