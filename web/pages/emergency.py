"""Breaking the glass: a page that says what follows, and the form that does it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import emergency, reading
from gateway.approvals.review import Submission
from gateway.errors import Conflict, GatepassError, NotAllowed, Refused
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import arguments, frame, visible
from web.pages.telling import Teller, again, reviewer_of

router = APIRouter(prefix="/requests")
Breaking = Annotated[Principal, frame.needs(Permission.BREAK_GLASS)]


class EmergencyForm(BaseModel):
    """Why it cannot wait, about exactly what was shown."""

    digest: str = Field(max_length=100)
    reason: str = Field("", max_length=2000)


@router.get("/{approval_id}/break-glass")
async def confirm(request: Request, approval_id: str, _reader: Breaking) -> Response:
    """What follows; decides nothing."""
    return await _page(request, approval_id)


@router.post("/{approval_id}/break-glass")
async def break_glass(
    request: Request, approval_id: str, reader: Breaking, form: Annotated[EmergencyForm, Form()]
) -> Response:
    """Approve alone; afterwards the browser is on the request's page again."""
    services = frame.web(request).services
    given = Submission(approval_id, "approve", form.digest, form.reason)
    try:
        await emergency.break_glass(
            services.approvals,
            reviewer_of(reader),
            given,
            look_into=services.settings.break_glass_review,
            now=frame.now(request),
        )
    except (Refused, NotAllowed, Conflict) as problem:
        return await _page(request, approval_id, form, problem)
    return RedirectResponse(f"/requests/{approval_id}", 303)


async def _page(
    request: Request,
    approval_id: str,
    form: EmergencyForm | None = None,
    problem: GatepassError | None = None,
) -> Response:
    parts = frame.web(request)
    view = await reading.read(parts.services.db, parts.services.envelope, approval_id)
    tell = Teller(parts.renderer, await frame.interface(request))
    shown = arguments.view(view.arguments)
    return await frame.page(
        request,
        "break_glass.html",
        problem.status if problem else 200,
        view=view,
        host=visible.host(view.server.url),
        arguments=shown,
        signs=tell.signals(view, shown),
        values=form,
        again=again(request, view),
        problem=tell.refusal(problem),
        look_into=parts.services.settings.break_glass_review,
    )
