"""The front page: how many wait, what is near its deadline, how the ledger stands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.approvals import reading
from gateway.approvals.reading import Query
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import frame
from web.pages import inbox

router = APIRouter()
_MOST = 200


@router.get("/")
async def overview(
    request: Request,
    _reader: Annotated[Principal, frame.needs(Permission.READ_REQUESTS)],
) -> Response:
    """Numbers, each linking to the list behind it, and what was decided last."""
    services, now = frame.web(request).services, frame.now(request)
    query = Query(state="pending", limit=_MOST)
    waiting = await reading.listing(services.db, services.envelope, query=query)
    newest = await reading.listing(services.db, services.envelope, query=Query(limit=30))
    decided = [inbox.row(view, now) for view in newest.items if view.decision is not None]
    return await frame.page(
        request,
        "overview.html",
        pending=len(waiting.items),
        more=waiting.next is not None,
        soon=sum(view.deadline - now < inbox.SOON for view in waiting.items),
        oldest=min((view.created_at for view in waiting.items), default=None),
        decided=decided[:5],
        ledger_ok=services.ledger.healthy,
    )


@router.get("/more")
async def more(
    request: Request,
    _reader: Annotated[Principal, frame.needs(Permission.READ_REQUESTS)],
) -> Response:
    """Every page there is for the reader: a phone's bar has room for a few."""
    return await frame.page(request, "more.html")
