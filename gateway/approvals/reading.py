"""Approval requests read: lists, one, those of an exchange, and waiting for one to change.

Nothing here changes a row. What the signed ledger does not have yet is not shown to anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sqlalchemy import bindparam, exists, func
from sqlalchemy.orm import aliased
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import lifecycle, views
from gateway.approvals.decisions import Approvals
from gateway.approvals.views import ApprovalView, Page
from gateway.errors import NotFound, Refused
from gateway.exchange.messages import Answer, Call
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import App, ApprovalRequest, AuditRecord, Evidence, Exchange, Review, User


@dataclass(frozen=True)
class Query:
    """What to list; `after` is the cursor of the page before."""

    state: str | None = None
    app: str | None = None
    server: str | None = None
    tool: str | None = None
    execution: str | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True)
class LeftOpen:
    """A call that an exchange asked for and never answered; `answer` None while undecided."""

    approval_id: str
    call: Call
    answer: Answer | None


#: Ends of an exchange that was told to come to nothing: nothing of it is sent afterwards.
_NOTHING = frozenset({"failed", "cancelled"})

# Built once: making a statement costs more than running it.
_columns: Any = select
_requested: Any = aliased(AuditRecord)
_decided: Any = aliased(AuditRecord)
_ONE: Any = (
    _columns(
        ApprovalRequest,
        col(Exchange.data_key),
        col(Exchange.state),
        col(Exchange.thread),
        col(App.owner),
        _requested.index,
        _decided.index,
    )
    .join(Exchange, col(Exchange.id) == ApprovalRequest.exchange_id)
    .join(App, col(App.id) == ApprovalRequest.app_id, isouter=True)
    .join(_requested, _requested.id == ApprovalRequest.record_id)
    .join(_decided, _decided.id == ApprovalRequest.decision_record_id, isouter=True)
    .where(col(ApprovalRequest.id) == bindparam("approval"), _requested.index.is_not(None))
)
_REVIEWS = (
    select(Review, User.disabled_at)
    .join(User, col(User.id) == Review.user_id, isouter=True)
    .where(
        col(Review.approval_id).in_(bindparam("approvals", expanding=True)),
        col(Review.withdrawn_at).is_(None),
    )
    .order_by(col(Review.id))
)


async def listing(db: Database, envelope: Envelope, *, query: Query) -> Page[ApprovalView]:
    """Requests that stand in the signed ledger: pending ones by deadline, others newest first."""
    limit = max(1, min(query.limit, 200))
    pending = query.state == lifecycle.PENDING
    key = col(ApprovalRequest.deadline if pending else ApprovalRequest.created_at)
    statement = select(ApprovalRequest).where(shown())
    for column, value in (
        (ApprovalRequest.state, query.state),
        (ApprovalRequest.app_name, query.app),
        (ApprovalRequest.server_label, query.server),
        (ApprovalRequest.tool, query.tool),
        (ApprovalRequest.execution, query.execution),
    ):
        if value:
            statement = statement.where(col(column) == value)
    async with db.reading() as session:
        if query.after:
            row = await session.get(ApprovalRequest, query.after)
            if row is None:
                raise Refused("'after' is not the id of a request.", param="after")
            mark, ident = (row.deadline if pending else row.created_at), col(ApprovalRequest.id)
            beyond = (key > mark, ident > row.id) if pending else (key < mark, ident < row.id)
            statement = statement.where(or_(beyond[0], (key == mark) & beyond[1]))
        order = (
            (key.asc(), col(ApprovalRequest.id).asc())
            if pending
            else (key.desc(), col(ApprovalRequest.id).desc())
        )
        found = await session.exec(statement.order_by(*order).limit(limit + 1))
        rows = list(found.all())
        items = await _views(session, envelope, rows[:limit])
    return Page(items, rows[limit - 1].id if len(rows) > limit else None)


async def read(db: Database, envelope: Envelope, approval_id: str) -> ApprovalView:
    """One request; raises `NotFound`."""
    async with db.reading() as session:
        found = await session.exec(_ONE, params={"approval": approval_id})
        first = found.first()
        if first is None:
            raise NotFound(f"There is no approval request {approval_id}.")
        row, data_key, state, thread, owner, *indexes = first
        reviews = await _reviews(session, [approval_id])
        evidence = await _evidence(session, [row])
        over = await _given_up(session, row, {row.exchange_id: state})
    opener = Opener(envelope, row.exchange_id, data_key)
    places = views.RecordIndexes(*indexes)
    view = _view(row, opener, reviews, owner, places, evidence.get(row.id, ()))
    return replace(view, thread=thread, given_up=over)


async def of_exchange(
    session: AsyncSession, envelope: Envelope, exchange_id: str
) -> tuple[ApprovalView, ...]:
    """Every request of one exchange, oldest first."""
    found = await session.exec(
        select(ApprovalRequest)
        .where(ApprovalRequest.exchange_id == exchange_id)
        .order_by(col(ApprovalRequest.id))
    )
    return tuple(await _views(session, envelope, found.all()))


async def answers(
    db: Database, envelope: Envelope, approval_ids: Sequence[str]
) -> dict[str, Answer]:
    """What Azure is to be told about those of these requests that are decided."""
    async with db.reading() as session:
        found = await session.exec(
            select(ApprovalRequest, Exchange.data_key)
            .join(Exchange, col(Exchange.id) == ApprovalRequest.exchange_id)
            .where(
                col(ApprovalRequest.id).in_(approval_ids),
                ApprovalRequest.state != lifecycle.PENDING,
            )
        )
        rows = found.all()
    given = {}
    for row, data_key in rows:
        reason = Opener(envelope, row.exchange_id, data_key).text(f"reason:{row.id}", row.reason)
        answer = lifecycle.answer(row.state, reason)
        if answer is not None:
            given[row.id] = answer
    return given


async def unclear(db: Database) -> int:
    """How many calls there are whose outcome is unknown."""
    async with db.reading() as session:
        found = await session.exec(
            select(func.count())
            .select_from(ApprovalRequest)
            .where(ApprovalRequest.execution == "unknown")
        )
        return found.one()


async def left_open(db: Database, envelope: Envelope, exchange_id: str) -> list[LeftOpen]:
    """The calls of the exchange's last round, if it ended without telling Azure about them.

    A call that was approved and already sent by another continuation is answered with no: one
    approval is one execution.
    """
    async with db.reading() as session:
        exchange = await session.get(Exchange, exchange_id)
        if exchange is None:
            return []
        found = await session.exec(
            select(ApprovalRequest).where(
                ApprovalRequest.exchange_id == exchange_id,
                ApprovalRequest.round == exchange.rounds - 1,
                ~col(ApprovalRequest.upstream_id).startswith(views.UNASKED),
            )
        )
        rows = [
            await _standing(session, row)
            for row in found.all()
            if await asked_in(session, row) == exchange_id
        ]
        keys = {exchange_id: exchange.data_key}
        for row in rows:
            if row.exchange_id not in keys:
                other = await session.get_one(Exchange, row.exchange_id)
                keys[other.id] = other.data_key
    calls = []
    for row in {row.id: row for row in rows}.values():
        opener = Opener(envelope, row.exchange_id, keys[row.exchange_id])
        answer = lifecycle.answer(row.state, opener.text(f"reason:{row.id}", row.reason))
        if answer is not None and answer.approve and row.execution != "not_sent":
            answer = Answer(approve=False, reason="This call has already been carried out.")
        elif exchange.state in _NOTHING:
            # The app was told that it came to nothing: going on must not carry it out after all.
            answer = Answer(approve=False, reason="The request for this call failed.")
        payload = opener.payload(row)
        call = Call(row.upstream_id, payload["label"], row.tool, payload["arguments"], row.round)
        calls.append(LeftOpen(row.id, call, answer))
    return calls


async def asked_in(session: AsyncSession, row: ApprovalRequest) -> str:
    """The exchange in which Azure asked for the call, whichever asks people about it anew."""
    while row.supersedes is not None:
        row = await session.get_one(ApprovalRequest, row.supersedes)
    return row.exchange_id


async def _standing(session: AsyncSession, row: ApprovalRequest) -> ApprovalRequest:
    """The request that asks for the call now: the last of those that superseded one another."""
    while row.superseded_by is not None:
        row = await session.get_one(ApprovalRequest, row.superseded_by)
    return row


async def wait(context: Approvals, approval_id: str, seconds: float) -> ApprovalView:
    """The request once it is decided, or as it is after `seconds`."""
    view = await read(context.db, context.envelope, approval_id)
    if view.state == lifecycle.PENDING:
        await context.wakeups.wait([approval_id], seconds)
        view = await read(context.db, context.envelope, approval_id)
    return view


def shown() -> Any:
    """The condition of every list: Nobody is shown what the signed ledger does not have yet."""
    # Correlated, so that one record is looked up by its id: a list of all of them would be scanned.
    return exists().where(
        col(AuditRecord.id) == ApprovalRequest.record_id, col(AuditRecord.index).is_not(None)
    )


async def _views(
    session: AsyncSession, envelope: Envelope, rows: Sequence[ApprovalRequest]
) -> list[ApprovalView]:
    if not rows:
        return []
    ids = [row.id for row in rows]
    reviews = await _reviews(session, ids)
    found = await session.exec(
        select(Exchange.id, Exchange.data_key, Exchange.state).where(
            col(Exchange.id).in_({row.exchange_id for row in rows})
        )
    )
    exchanges = found.all()
    keys = {name: data_key for name, data_key, _ in exchanges}
    states = {name: state for name, _, state in exchanges}
    owners = dict(
        (
            await session.exec(
                select(App.id, App.owner).where(col(App.id).in_({row.app_id for row in rows}))
            )
        ).all()
    )
    named = [row.record_id for row in rows]
    named += [row.decision_record_id for row in rows if row.decision_record_id]
    indexes = dict(
        (
            await session.exec(
                select(AuditRecord.id, AuditRecord.index).where(col(AuditRecord.id).in_(named))
            )
        ).all()
    )
    evidence = await _evidence(session, rows)
    over = {row.id for row in rows if await _given_up(session, row, states)}
    return [
        replace(
            _view(
                row,
                Opener(envelope, row.exchange_id, keys.get(row.exchange_id)),
                [(review, counts) for review, counts in reviews if review.approval_id == row.id],
                owners.get(row.app_id),
                views.RecordIndexes(
                    indexes.get(row.record_id), indexes.get(row.decision_record_id or "")
                ),
                evidence.get(row.id, ()),
            ),
            given_up=row.id in over,
        )
        for row in rows
    ]


async def _given_up(session: AsyncSession, row: ApprovalRequest, states: dict[str, str]) -> bool:
    """Whether it was approved, and will never be sent: the exchange that asked for the call came to
    nothing. `states` are those of exchanges, as far as they are known.
    """
    approved = row.state == lifecycle.APPROVED and row.execution == "not_sent"
    if not approved or row.superseded_by is not None:
        return False
    name = await asked_in(session, row)
    if name not in states:
        states[name] = (await session.get_one(Exchange, name)).state
    return states[name] in _NOTHING


async def _evidence(
    session: AsyncSession, rows: Sequence[ApprovalRequest]
) -> dict[str, tuple[views.EvidenceView, ...]]:
    unclear = [row.id for row in rows if row.execution == "unknown" or row.settlement]
    if not unclear:
        return {}
    found = await session.exec(
        select(Evidence)
        .where(col(Evidence.approval_id).in_(unclear))
        .order_by(col(Evidence.gathered_at), col(Evidence.id))
    )
    seen: dict[str, tuple[views.EvidenceView, ...]] = {}
    for row in found:
        view = views.EvidenceView(row.finding, row.where, row.arguments_match, row.gathered_at)
        seen[row.approval_id] = (*seen.get(row.approval_id, ()), view)
    return seen


async def _reviews(session: AsyncSession, ids: Sequence[str]) -> list[tuple[Review, bool]]:
    """The reviews that stand, oldest first, each with whether it counts still."""
    found = await session.exec(_REVIEWS, params={"approvals": list(ids)})
    return [(review, disabled_at is None) for review, disabled_at in found.all()]


@dataclass(frozen=True)
class Opener:
    """Opens the sealed texts of one exchange; None where the data key is gone."""

    envelope: Envelope
    exchange_id: str
    data_key: bytes | None

    def text(self, name: str, sealed: bytes | None) -> str | None:
        """The text sealed under `name`."""
        if sealed is None or self.data_key is None:
            return None
        return self.envelope.open(self.data_key, self.exchange_id, name, sealed).decode()

    def payload(self, row: ApprovalRequest) -> dict[str, Any]:
        """`arguments`, `nonce` and the app's `label` for the server."""
        text = self.text(f"call:{row.id}", row.payload)
        return {"arguments": "", "nonce": "", "label": ""} if text is None else orjson.loads(text)


def _view(
    row: ApprovalRequest,
    opener: Opener,
    reviews: Sequence[tuple[Review, bool]],
    owner: str | None,
    indexes: views.RecordIndexes,
    evidence: tuple[views.EvidenceView, ...],
) -> ApprovalView:
    decision = None
    if row.decided_at is not None:
        decision = views.DecisionView(
            by=row.decided_by or "",
            verdict="approve" if row.state == lifecycle.APPROVED else "deny",
            at=row.decided_at,
            reason=opener.text(f"reason:{row.id}", row.reason),
            grant=row.grant_id,
        )
    return ApprovalView(
        id=row.id,
        state=row.state,
        exchange_id=row.exchange_id,
        app=row.app_name,
        end_user=row.end_user,
        server=views.ServerName(row.server_label, row.server_url),
        server_id=row.server_id,
        tool=row.tool,
        arguments=opener.payload(row)["arguments"],
        digest=row.digest,
        risk_signals=tuple(row.risk_signals),
        rule=row.rule,
        policy_digest=row.policy_digest,
        quorum=views.Quorum(
            row.quorum_needed,
            # Once it is decided, what counted then is what counted.
            sum(
                review.verdict == "approve" and (counts or decision is not None)
                for review, counts in reviews
            ),
        ),
        groups=tuple(row.reviewer_groups or ()),
        require_reason=row.require_reason,
        step_up=row.step_up,
        created_at=row.created_at,
        deadline=row.deadline,
        reviews=tuple(
            _review(opener, review, counts=counts or decision is not None)
            for review, counts in reviews
        ),
        decision=decision,
        execution=row.execution,
        arguments_match=row.arguments_match,
        executed_at=row.executed_at,
        definition=row.definition,
        definition_digest=row.definition_digest,
        round=row.round,
        record=indexes,
        owner=owner,
        superseded_by=row.superseded_by,
        supersedes=row.supersedes,
        credential=row.credential,
        settlement=_settlement(row, opener),
        evidence=evidence,
        settles_at=row.settles_at if decision is None else None,
        undo_seconds=row.undo_seconds,
        always_ask=row.always_ask,
        escalation=_escalation(row),
    )


def _settlement(row: ApprovalRequest, opener: Opener) -> views.SettlementView | None:
    if row.settlement is None or row.settled_at is None:
        return None
    reason = opener.text(f"settlement:{row.id}", row.settlement_reason)
    return views.SettlementView(row.settlement, row.settled_by or "", row.settled_at, reason)


def _review(opener: Opener, review: Review, *, counts: bool) -> views.ReviewView:
    return views.ReviewView(
        reviewer=review.reviewer,
        verdict=review.verdict,
        channel=review.channel,
        at=review.created_at,
        reason=opener.text(f"review:{review.id}:reason", review.reason),
        note=opener.text(f"review:{review.id}:note", review.note),
        on_behalf_of=review.on_behalf_of,
        emergency=review.emergency,
        counts=counts,
    )


def _escalation(row: ApprovalRequest) -> views.EscalationView | None:
    if row.escalates_at is None:
        return None
    return views.EscalationView(row.escalates_at, tuple(row.escalate_to or ()), row.escalated_at)
