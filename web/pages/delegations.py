"""Who stands in for whom while somebody is away."""

from __future__ import annotations

import contextlib
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Annotated

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import Conflict, GatepassError, NotAllowed, Refused
from gateway.identity import delegations
from gateway.identity.delegations import NewDelegation, Speaker
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import frame, words
from web.pages.telling import Teller

router = APIRouter(prefix="/delegations")
Delegating = Annotated[Principal, frame.needs(Permission.DELEGATE)]


class DelegationForm(BaseModel):
    """Whole days in the reader's own zone; the last one counts."""

    from_email: str = Field("", max_length=254)
    to_email: str = Field(max_length=254)
    first: date
    last: date

    def wanted(self, own: str, zone: tzinfo, now: datetime) -> NewDelegation:
        """The same for the use case; a day that has begun counts from now."""
        starts = datetime.combine(self.first, time(), zone)
        ends = datetime.combine(self.last + timedelta(days=1), time(), zone)
        return NewDelegation(self.from_email.strip() or own, self.to_email, max(starts, now), ends)


@router.get("")
async def listing(request: Request, reader: Delegating) -> Response:
    """What concerns the reader, or everything for an admin."""
    return await _page(request, reader)


@router.post("")
async def create(
    request: Request, reader: Delegating, form: Annotated[DelegationForm, Form()]
) -> Response:
    """Let somebody stand in."""
    ledger, now = frame.web(request).services.ledger, frame.now(request)
    zone = (await frame.interface(request)).reader.zone
    wanted = form.wanted(reader.email, zone, now)
    try:
        await delegations.create(ledger, wanted, speaker=_speaker(reader), now=now)
    except (Refused, NotAllowed) as problem:
        return await _page(request, reader, form, problem)
    return RedirectResponse("/delegations", 303)


@router.post("/{delegation_id}/revoke")
async def revoke(request: Request, delegation_id: str, reader: Delegating) -> Response:
    """End one, at once; one that is over already is what was wanted."""
    ledger, now = frame.web(request).services.ledger, frame.now(request)
    with contextlib.suppress(Conflict):
        await delegations.revoke(ledger, delegation_id, speaker=_speaker(reader), now=now)
    return RedirectResponse("/delegations", 303)


def _speaker(reader: Principal) -> Speaker:
    return Speaker(reader.actor, reader.email, reader.roles)


async def _page(
    request: Request,
    reader: Principal,
    form: DelegationForm | None = None,
    problem: GatepassError | None = None,
) -> Response:
    services, now = frame.web(request).services, frame.now(request)
    ui = await frame.interface(request)
    tell = Teller(frame.web(request).renderer, ui)
    return await frame.page(
        request,
        "delegations.html",
        problem.status if problem else 200,
        items=await delegations.listing(services.db, speaker=_speaker(reader), now=now),
        states=words.DELEGATION_STATES,
        values=form,
        today=now.astimezone(ui.reader.zone).date(),
        problem=tell.refusal(problem),
    )
