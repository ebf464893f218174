"""Approve and remember: what calls like this one are answered with, for whom and until when.

Everything that is granted stands in the form as it is posted; the server takes nothing from
elsewhere. Asking what it would have covered decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Form
from pydantic import AwareDatetime, BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import granted, grants, lifecycle, reading, review, terms
from gateway.approvals.granted import Coverage
from gateway.approvals.review import Submission
from gateway.approvals.terms import Terms
from gateway.approvals.views import ApprovalView
from gateway.errors import Conflict, GatepassError, NotAllowed, Refused
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.policy import arguments as argument_text
from web import arguments, frame, visible, words
from web.pages.telling import Teller, again, reviewer_of

router = APIRouter(prefix="/requests")
LENGTHS = tuple(timedelta(hours=hours) for hours in (1, 8, 24, 7 * 24, 30 * 24))
Deciding = Annotated[Principal, frame.needs(Permission.REVIEW_REQUESTS)]


class TermsForm(BaseModel):
    """Terms as the form posts them; an empty number of uses means any."""

    digest: str = Field(max_length=100)
    kind: str = Field(max_length=20)
    fields: list[str] = Field(default_factory=list, max_length=50)
    scope: str = Field(max_length=20)
    until: AwareDatetime
    max_uses: str = Field("", max_length=10)
    reason: str = Field("", max_length=2000)

    def terms(self) -> Terms:
        """The same for the use case; raises `Refused`."""
        uses = self.max_uses.strip()
        if uses and not (uses.isascii() and uses.isdigit()):
            raise Refused("The number of uses must be a number.", param="max_uses")
        chosen = tuple(self.fields) if self.kind == terms.FIELDS else ()
        return Terms(self.kind, self.scope, self.until, chosen, int(uses) if uses else None)


@dataclass(frozen=True)
class Choice:
    """An argument that may have to be the same: where it stands, and its value as text."""

    pointer: str
    value: str


@router.get("/{approval_id}/remember")
async def choose(request: Request, approval_id: str, _reader: Deciding) -> Response:
    """The terms to choose from; decides nothing."""
    return await _page(request, await _read(request, approval_id))


@router.post("/{approval_id}/remember/preview")
async def preview(
    request: Request, approval_id: str, _reader: Deciding, form: Annotated[TermsForm, Form()]
) -> Response:
    """The same page with how many of the last calls these terms would have covered."""
    services, view = frame.web(request).services, await _read(request, approval_id)
    try:
        coverage = await granted.preview(
            services.db, services.envelope, approval_id, form.terms(), now=frame.now(request)
        )
    except Refused as problem:
        return await _page(request, view, form, problem=problem)
    return await _page(request, view, form, coverage=coverage)


@router.post("/{approval_id}/remember")
async def remember(
    request: Request, approval_id: str, reader: Deciding, form: Annotated[TermsForm, Form()]
) -> Response:
    """Approve and remember, or remember what is approved; then the request's page."""
    problem = await _remember(request, reader, approval_id, form)
    if problem is None:
        return RedirectResponse(f"/requests/{approval_id}", 303)
    return await _page(request, await _read(request, approval_id), form, problem=problem)


async def _remember(
    request: Request, reader: Principal, approval_id: str, form: TermsForm
) -> GatepassError | None:
    context, now = frame.web(request).services.approvals, frame.now(request)
    reviewer = reviewer_of(reader)
    try:
        wanted = form.terms()
        if (await _read(request, approval_id)).state == lifecycle.PENDING:
            reason = form.reason.strip() or None
            given = Submission(approval_id, "approve", form.digest, reason, remember=wanted)
            await review.review(context, reviewer, given, now=now)
        else:
            await grants.remember_later(context, reviewer, approval_id, wanted, now=now)
    except (Refused, NotAllowed, Conflict) as problem:
        return problem
    return None


async def _read(request: Request, approval_id: str) -> ApprovalView:
    services = frame.web(request).services
    return await reading.read(services.db, services.envelope, approval_id)


async def _page(
    request: Request,
    view: ApprovalView,
    form: TermsForm | None = None,
    *,
    problem: GatepassError | None = None,
    coverage: Coverage | None = None,
) -> Response:
    tell = Teller(frame.web(request).renderer, await frame.interface(request))
    shown = arguments.view(view.arguments)
    values = form or TermsForm(
        digest=view.digest,
        kind=terms.EXACT,
        scope=terms.APP,
        until=frame.now(request) + LENGTHS[1],
        max_uses="20",
    )
    return await frame.page(
        request,
        "remember.html",
        problem.status if problem else 200,
        view=view,
        host=visible.host(view.server.url),
        arguments=shown,
        signs=tell.signals(view, shown),
        values=values,
        choices=_choices(view.arguments),
        ends=_ends(frame.now(request), values.until),
        scopes=_scopes(view),
        problem=tell.refusal(problem),
        again=again(request, view),
        coverage=coverage,
    )


def _choices(raw: str) -> list[Choice]:
    value: Any = argument_text.read(raw).value
    return [
        Choice(pointer, orjson.dumps(terms.at(value, pointer)).decode())
        for pointer in terms.pointers(raw)
    ]


def _ends(now: datetime, chosen: datetime) -> list[datetime]:
    return sorted({chosen, *(now + length for length in LENGTHS)})


def _scopes(view: ApprovalView) -> list[tuple[str, str, str]]:
    """For whom it may be: the word, its sentence, and which one."""
    named = {
        terms.APP: view.app,
        terms.END_USER: view.end_user,
        terms.THREAD: "" if view.thread else None,
    }
    return [
        (scope, words.SCOPES[scope], which) for scope, which in named.items() if which is not None
    ]
