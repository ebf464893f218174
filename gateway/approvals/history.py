"""Exchanges as people and their automation see them: a list, and one with its calls. Reads only."""

from __future__ import annotations

from typing import Any

from sqlmodel import col, select

from gateway.approvals import reading
from gateway.approvals.views import ExchangeView, Page
from gateway.errors import NotFound, Refused
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.tables import App, Exchange, ResponseId


async def listing(
    db: Database, *, app: str | None = None, after: str | None = None, limit: int = 50
) -> Page[ExchangeView]:
    """Exchanges with MCP tools, newest first."""
    limit = max(1, min(limit, 200))
    statement = (
        select(Exchange, App.name)
        .join(App, col(App.id) == Exchange.app_id, isouter=True)
        .order_by(col(Exchange.id).desc())
        .limit(limit + 1)
    )
    if app:
        statement = statement.where(App.name == app)
    if after:
        if not after.startswith("exc_"):
            raise Refused("'after' is not the id of an exchange.", param="after")
        statement = statement.where(col(Exchange.id) < after)
    async with db.reading() as session:
        rows = (await session.exec(statement)).all()
    views = [_view(row, name) for row, name in rows[:limit]]
    return Page(views, views[-1].id if len(rows) > limit else None)


async def read(db: Database, envelope: Envelope, exchange_id: str) -> ExchangeView:
    """One exchange with its calls; raises `NotFound`."""
    async with db.reading() as session:
        row = await session.get(Exchange, exchange_id)
        if row is None:
            raise NotFound(f"There is no exchange {exchange_id}.")
        app = await session.get(App, row.app_id)
        ids = await session.exec(
            select(ResponseId.response_id)
            .where(ResponseId.exchange_id == exchange_id)
            .order_by(col(ResponseId.round))
        )
        calls = await reading.of_exchange(session, envelope, exchange_id)
        return _view(row, app.name if app else None, tuple(ids.all()), calls)


def _view(
    row: Exchange,
    app: str | None,
    upstream_ids: tuple[str, ...] = (),
    calls: tuple[Any, ...] = (),
) -> ExchangeView:
    return ExchangeView(
        id=row.id,
        state=row.state,
        app=app or row.app_id,
        response_id=row.response_id,
        model=row.model,
        end_user=row.end_user,
        streamed=row.streamed,
        background=row.background,
        rounds=row.rounds,
        created_at=row.created_at,
        finished_at=row.finished_at,
        upstream_ids=upstream_ids,
        approval_requests=calls,
    )
