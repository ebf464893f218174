"""What must be looked at and what is stopped: alarms, pauses, outcomes that nobody knows.

Every form here is a POST of its own that one use case answers; a page alone changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import alarms, reading, settlement
from gateway.approvals.alarms import Closing
from gateway.approvals.reading import Query
from gateway.approvals.review import Reviewer
from gateway.approvals.settlement import Settling
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import pauses
from gateway.registry.pauses import Pausing
from web import frame

router = APIRouter()
Looking = Annotated[Principal, frame.needs(Permission.READ_REQUESTS)]
Closer = Annotated[Principal, frame.needs(Permission.CLOSE_ALARMS)]
Beginner = Annotated[Principal, frame.needs(Permission.BEGIN_PAUSES)]
Ender = Annotated[Principal, frame.needs(Permission.END_PAUSES)]
Deciding = Annotated[Principal, frame.needs(Permission.REVIEW_REQUESTS)]


class PauseForm(BaseModel):
    """What to pause, and why."""

    scope: Literal["all", "app", "server"]
    app: str = ""
    server: str = ""
    reason: str = ""


class NoteForm(BaseModel):
    """What somebody found out about an alarm."""

    note: str = ""


class SettlementForm(BaseModel):
    """What became of a call, and how one knows."""

    outcome: Literal["executed", "not_executed"]
    reason: str = ""


@router.get("/alarms")
async def show(request: Request, _reader: Looking) -> Response:
    """Alarms and pauses, those in force first."""
    services = frame.web(request).services
    view = services.directory.view
    return await frame.page(
        request,
        "alarms.html",
        alarms=await alarms.listing(services.db),
        closed=await alarms.listing(services.db, closed=True, limit=20),
        pauses=await pauses.listing(services.db),
        ended=await pauses.listing(services.db, ended=True, limit=20),
        apps=sorted(app.name for app in view.apps.values()),
        servers=sorted(view.servers_by_label),
    )


@router.post("/alarms/{alarm_id}/close")
async def close(
    request: Request, alarm_id: str, closer: Closer, form: Annotated[NoteForm, Form()]
) -> Response:
    """Close an alarm with a note."""
    services = frame.web(request).services
    closing = Closing(closer.actor, closer.email, form.note)
    await alarms.close(services.approvals, alarm_id, closing, now=frame.now(request))
    return RedirectResponse("/alarms", 303)


@router.post("/pauses")
async def begin(
    request: Request, beginner: Beginner, form: Annotated[PauseForm, Form()]
) -> Response:
    """Begin a pause."""
    services = frame.web(request).services
    target = {"all": "", "app": form.app, "server": form.server}[form.scope]
    wanted = Pausing(form.scope, target, form.reason, beginner.email)
    await pauses.begin(services.ledger, wanted, actor=beginner.actor, now=frame.now(request))
    return RedirectResponse("/alarms", 303)


@router.post("/pauses/{pause_id}/end")
async def end(request: Request, pause_id: str, ender: Ender) -> Response:
    """End a pause."""
    services = frame.web(request).services
    now = frame.now(request)
    await pauses.end(services.ledger, pause_id, ender.email, actor=ender.actor, now=now)
    return RedirectResponse("/alarms", 303)


@router.get("/unclear")
async def unclear(request: Request, _reader: Looking, after: str | None = None) -> Response:
    """Calls that were sent and of which nobody knows what became."""
    services = frame.web(request).services
    query = Query(execution="unknown", after=after or None)
    found = await reading.listing(services.db, services.envelope, query=query)
    return await frame.page(
        request,
        "unclear.html",
        items=found.items,
        next=f"/unclear?after={found.next}" if found.next else None,
        first="/unclear" if after else None,
    )


@router.post("/requests/{approval_id}/settlement")
async def settle(
    request: Request,
    approval_id: str,
    person: Deciding,
    form: Annotated[SettlementForm, Form()],
) -> Response:
    """Say what became of a call of unknown outcome."""
    services = frame.web(request).services
    reviewer = Reviewer(
        person.user_id, person.email, person.roles, person.groups, channel="web", auth=person.auth
    )
    settling = Settling(approval_id, form.outcome, form.reason)
    await settlement.settle(services.approvals, reviewer, settling, now=frame.now(request))
    return RedirectResponse(f"/requests/{approval_id}", 303)
