"""What other rules would have done with the calls that were asked for last.

Reads, compares, changes nothing: a simulated ruling releases no call. Each call is ruled on as
of the time it was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from gateway.approvals import reading
from gateway.approvals.reading import Query
from gateway.approvals.views import ApprovalView
from gateway.policy import CallFacts, Policy, evaluate
from gateway.store.database import Database
from gateway.store.envelope import Envelope

_PAGE = 200


@dataclass(frozen=True)
class Changed:
    """A call that other rules would have treated otherwise. Effects: allow, hold, deny."""

    id: str
    app: str
    server: str
    tool: str
    asked_at: datetime
    was: str
    would_be: str
    rule: str | None
    why: str


@dataclass(frozen=True)
class Outcome:
    """How many calls were looked at, what would have become of them, and which would differ."""

    calls: int
    would_be: dict[str, int]
    changed: tuple[Changed, ...]


async def simulate(db: Database, envelope: Envelope, policy: Policy, *, last: int) -> Outcome:
    """Rule with `policy` on the `last` calls; changed ones newest first."""
    views = await _latest(db, envelope, last)
    rulings = [(view, _would_be(policy, view)) for view in views]
    return Outcome(
        calls=len(views),
        would_be=dict(Counter(changed.would_be for _, changed in rulings)),
        changed=tuple(changed for _, changed in rulings if changed.was != changed.would_be),
    )


async def _latest(db: Database, envelope: Envelope, last: int) -> list[ApprovalView]:
    views: list[ApprovalView] = []
    after = None
    while len(views) < last:
        page = await reading.listing(
            db, envelope, query=Query(after=after, limit=min(_PAGE, last - len(views)))
        )
        views += page.items
        after = page.next
        if after is None:
            break
    return views


def _would_be(policy: Policy, view: ApprovalView) -> Changed:
    call = CallFacts(
        app=view.app,
        server=view.server.label,
        tool=view.tool,
        arguments=view.arguments,
        end_user=view.end_user,
        definition=view.definition,
    )
    ruling = evaluate(policy, call, view.created_at)
    return Changed(
        id=view.id,
        app=view.app,
        server=view.server.label,
        tool=view.tool,
        asked_at=view.created_at,
        was=_was(view),
        would_be=str(ruling.effect),
        rule=ruling.rule,
        why=ruling.why,
    )


def _was(view: ApprovalView) -> str:
    match view.decision:
        case None:
            return "hold"
        case decision if decision.by == "policy":
            return "allow" if decision.verdict == "approve" else "deny"
        case _:
            return "hold"
