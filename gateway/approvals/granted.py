"""Grants as people see them: a list, one, and what one would have covered. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import col, select

from gateway.approvals import grants, lifecycle, reading, terms
from gateway.approvals.reading import Opener
from gateway.approvals.terms import Pattern, Terms
from gateway.approvals.views import Page, ServerName, jsonable
from gateway.errors import NotFound, Refused
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import ApprovalRequest, AuditRecord, Exchange, Grant

_LOOKED_AT = 100


@dataclass(frozen=True)
class GrantView:
    """A remembered approval. `state` live, used_up, expired or ended; `fields` by JSON pointer."""

    id: str
    state: str
    approval_id: str
    app: str
    server: ServerName
    tool: str
    definition_digest: str | None
    rule: str | None
    kind: str
    exact: str | None
    fields: dict[str, Any]
    scope: str
    subject: str
    uses: int
    max_uses: int | None
    created_at: datetime
    creator: str
    expires_at: datetime
    ended_at: datetime | None
    ended_by: str | None
    ended_why: str | None
    terms: str

    def document(self) -> dict[str, Any]:
        """JSON-ready; times are RFC 3339 in UTC."""
        return jsonable(self)


@dataclass(frozen=True)
class Coverage:
    """How many of the last calls of the app that were held a grant would have answered."""

    covered: int
    of: int


async def listing(
    db: Database,
    envelope: Envelope,
    *,
    now: datetime,
    live: bool = False,
    after: str | None = None,
    limit: int = 50,
) -> Page[GrantView]:
    """Grants in the signed ledger, newest first; `live`: only those that may still answer."""
    limit = max(1, min(limit, 200))
    statement = _recorded().order_by(col(Grant.id).desc()).limit(limit + 1)
    if live:
        statement = statement.where(*grants.live(now))
    if after:
        if not after.startswith("grt_"):
            raise Refused("'after' is not the id of a grant.", param="after")
        statement = statement.where(col(Grant.id) < after)
    async with db.reading() as session:
        rows = (await session.exec(statement)).all()
    views = [_view(envelope, row, digest, now) for row, digest in rows[:limit]]
    return Page(views, views[-1].id if len(rows) > limit else None)


async def read(db: Database, envelope: Envelope, grant_id: str, *, now: datetime) -> GrantView:
    """One grant; raises `NotFound`."""
    async with db.reading() as session:
        row = (await session.exec(_recorded().where(Grant.id == grant_id))).first()
    if row is None:
        raise NotFound(f"There is no grant {grant_id}.")
    return _view(envelope, row[0], row[1], now)


async def of_approval(
    db: Database, envelope: Envelope, approval_id: str, *, now: datetime
) -> list[GrantView]:
    """The grants that were made of one approval, newest first."""
    mine = _recorded().where(Grant.approval_id == approval_id).order_by(col(Grant.id).desc())
    async with db.reading() as session:
        rows = (await session.exec(mine)).all()
    return [_view(envelope, row, digest, now) for row, digest in rows]


async def preview(
    db: Database, envelope: Envelope, approval_id: str, wanted: Terms, *, now: datetime
) -> Coverage:
    """What these terms, remembered from this request, would have covered.

    Of the last 100 calls of the same app that policy held. Raises as making the grant would.
    """
    wanted.check(now)
    async with db.reading() as session:
        source = select(ApprovalRequest, Exchange.data_key, Exchange.thread).join(
            Exchange, col(Exchange.id) == ApprovalRequest.exchange_id
        )
        first = await session.exec(source.where(ApprovalRequest.id == approval_id, reading.shown()))
        found = first.first()
        if found is None:
            raise NotFound(f"There is no approval request {approval_id}.")
        last = await session.exec(
            source.where(
                ApprovalRequest.app_id == found[0].app_id,
                # What policy settled by itself was never held.
                (col(ApprovalRequest.decided_by) != "policy")
                | (col(ApprovalRequest.state) == lifecycle.PENDING),
                reading.shown(),
            )
            .order_by(col(ApprovalRequest.created_at).desc(), col(ApprovalRequest.id).desc())
            .limit(_LOOKED_AT)
        )
        rows = last.all()
    row, data_key, thread = found
    arguments = Opener(envelope, row.exchange_id, data_key).payload(row)["arguments"]
    pattern = Pattern.of(wanted, arguments, "")
    like = [
        other
        for other, key, other_thread in rows
        if _same_tool(row, other)
        and _same_subject(wanted.scope, (row, thread), (other, other_thread))
        and pattern.covers(Opener(envelope, other.exchange_id, key).payload(other)["arguments"])
    ]
    return Coverage(len(like), len(rows))


def _same_tool(row: ApprovalRequest, other: ApprovalRequest) -> bool:
    def what(one: ApprovalRequest) -> tuple[str, str, str, str | None]:
        return one.server_id, one.server_url, one.tool, one.definition_digest

    return what(row) == what(other)


def _same_subject(
    scope: str, here: tuple[ApprovalRequest, str | None], there: tuple[ApprovalRequest, str | None]
) -> bool:
    match scope:
        case terms.END_USER:
            return here[0].end_user is not None and here[0].end_user == there[0].end_user
        case terms.THREAD:
            return here[1] is not None and here[1] == there[1]
        case _:
            return True


def _recorded() -> Any:
    return (
        select(Grant, ApprovalRequest.digest)
        .join(ApprovalRequest, col(ApprovalRequest.id) == Grant.approval_id)
        .join(AuditRecord, col(AuditRecord.id) == Grant.record_id)
        .where(col(AuditRecord.index).is_not(None))
    )


def _view(envelope: Envelope, row: Grant, approval_digest: str, now: datetime) -> GrantView:
    pattern = grants.opened(envelope, row)
    return GrantView(
        id=row.id,
        state=_state(row, now),
        approval_id=row.approval_id,
        app=row.app_name,
        server=ServerName(row.server_label, row.server_url),
        tool=row.tool,
        definition_digest=row.definition_digest,
        rule=row.rule,
        kind=row.kind,
        exact=pattern.exact,
        fields=dict(pattern.fields),
        scope=row.scope,
        subject=row.app_name if row.scope == terms.APP else row.subject,
        uses=row.uses,
        max_uses=row.max_uses,
        created_at=row.created_at,
        creator=row.creator,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
        ended_by=row.ended_by,
        ended_why=row.ended_why,
        terms=terms.digest(grants.facts(row, approval_digest), pattern),
    )


def _state(row: Grant, now: datetime) -> str:
    if row.ended_at is not None:
        return "ended"
    if row.expires_at <= now:
        return "expired"
    return "used_up" if row.max_uses is not None and row.uses >= row.max_uses else "live"
