"""What waits for people, soonest deadline first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.approvals import reading
from gateway.approvals.reading import Query
from gateway.approvals.views import ApprovalView
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import arguments, frame

router = APIRouter()
SOON = timedelta(minutes=5)


@dataclass(frozen=True)
class Row:
    """One line: the request, its arguments in brief, whether the deadline is near."""

    view: ApprovalView
    summary: str
    soon: bool


@router.get("/inbox")
async def inbox(
    request: Request,
    _reader: Annotated[Principal, frame.needs(Permission.READ_REQUESTS)],
    after: str | None = None,
) -> Response:
    """Pending approval requests."""
    services = frame.web(request).services
    query = Query(state="pending", after=after or None)
    found = await reading.listing(services.db, services.envelope, query=query)
    last = None if found.items else await last_decision(services)
    return await frame.page(
        request,
        "inbox.html",
        items=[row(view, frame.now(request)) for view in found.items],
        count=len(found.items),
        next=f"/inbox?after={found.next}" if found.next else None,
        first="/inbox" if after else None,
        last=last,
    )


def row(view: ApprovalView, now: datetime) -> Row:
    """A request as a line of a list."""
    return Row(view, arguments.summary(view.arguments), view.deadline - now < SOON)


async def last_decision(services: Any) -> datetime | None:
    """When the newest of the requests that are settled was decided."""
    newest = await reading.listing(services.db, services.envelope, query=Query(limit=20))
    times = [view.decision.at for view in newest.items if view.decision is not None]
    return max(times, default=None)
