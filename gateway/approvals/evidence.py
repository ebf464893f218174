"""What can be found out without a person about calls whose outcome is unknown: which, and when.

Asks nobody itself: whoever talks to Azure takes the cases that are due and notes what it found.
Every process may do so; a look is counted once. Looks come ever more seldom, until a day is over
or the answer is there; also after a person has said "not executed", for that may turn out wrong.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, func
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals.decisions import Approvals
from gateway.approvals.late import TELLING, Finding
from gateway.approvals.reading import Opener, asked_in
from gateway.exchange.messages import Json
from gateway.exchange.reports import arguments_text
from gateway.store.tables import ApprovalRequest, Evidence, Exchange, ResponseId

#: When is looked, counted from the moment at which the outcome was given up as unknown.
LOOKS = tuple(timedelta(seconds=s) for s in (1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600))
_BATCH = 20
_OVER = frozenset({"completed", "failed", "incomplete", "cancelled"})


@dataclass(frozen=True, slots=True)
class Case:
    """A call of unknown outcome and where it may show: the response that was to carry it out, by
    id if one was heard of, and the conversation, if there is one. `number` counts the looks.
    """

    approval_id: str
    number: int
    request_id: str
    label: str
    tool: str
    arguments: str
    response_id: str | None
    conversation_id: str | None


async def due(context: Approvals, *, now: datetime) -> list[Case]:
    """The cases that are to be looked into now."""
    async with context.db.reading() as session:
        rows = (await session.exec(_open().limit(500))).all()
        if not rows:
            return []
        looks = await _looks(session, [row.id for row in rows])
        ready = [row for row in rows if _since(row) + _look(looks[row.id]) <= now]
        return [await _case(session, context, row, looks[row.id]) for row in ready[:_BATCH]]


def _open() -> Any:
    """Unclear calls of which not everything has been tried and nothing telling was found."""
    of_call = col(Evidence.approval_id) == ApprovalRequest.id
    tried = select(func.count()).select_from(Evidence).where(of_call).scalar_subquery()
    told = exists().where(of_call, col(Evidence.finding).in_(TELLING))
    return (
        select(ApprovalRequest)
        .where(
            or_(
                ApprovalRequest.execution == "unknown",
                # Named by the column that has an index.
                col(ApprovalRequest.settled_at).is_not(None)
                & (col(ApprovalRequest.settlement) == "not_executed"),
            ),
            tried < len(LOOKS),
            ~told,
        )
        .order_by(col(ApprovalRequest.id).desc())
    )


def _look(number: int) -> timedelta:
    return LOOKS[min(number, len(LOOKS) - 1)]  # another process may just have had the last one


def _since(row: ApprovalRequest) -> datetime:
    return row.executed_at or row.created_at


async def _looks(session: AsyncSession, approval_ids: list[str]) -> Counter[str]:
    found = await session.exec(
        select(Evidence.approval_id).where(col(Evidence.approval_id).in_(approval_ids))
    )
    return Counter(found.all())


async def _case(
    session: AsyncSession, context: Approvals, row: ApprovalRequest, number: int
) -> Case:
    sender = row.released_by or row.exchange_id
    # What another exchange left open is answered by the first round of the one that goes on.
    sent = row.round + 1 if sender == await asked_in(session, row) else 0
    found = await session.exec(
        select(ResponseId.response_id).where(
            ResponseId.exchange_id == sender, ResponseId.round == sent
        )
    )
    response_id = found.first()
    exchange = await session.get(Exchange, sender)
    asking = await session.get(Exchange, row.exchange_id)
    data_key = asking.data_key if asking else None
    payload = Opener(context.envelope, row.exchange_id, data_key).payload(row)
    return Case(
        row.id,
        number,
        row.upstream_id,
        payload["label"],
        row.tool,
        payload["arguments"],
        response_id,
        exchange.conversation_id if exchange else None,
    )


def of_response(case: Case, response: Json) -> Finding:
    """What a response that Azure shows says of the call."""
    where = str(case.response_id)
    found = of_items(case, response.get("output"), where)
    if found is None:
        found = Finding("absent" if response.get("status") in _OVER else "unavailable", where)
    return found


def of_items(case: Case, items: object, where: str) -> Finding | None:
    """The same of a list of items; None where the call is not among them."""
    for item in items if isinstance(items, list) else []:
        if not isinstance(item, dict) or item.get("type") != "mcp_call":
            continue
        if item.get("approval_request_id") == case.request_id:
            return _of_call(case, item, where)
    return None


def _of_call(case: Case, item: Json, where: str) -> Finding:
    status = item.get("status") or "completed"
    if item.get("error") or status == "failed":
        return Finding("failed", where)
    if status != "completed":
        return Finding("unavailable", where)
    told = (item.get("server_label"), item.get("name"), arguments_text(item.get("arguments")))
    return Finding("executed", where, told == (case.label, case.tool, case.arguments))
