"""One approval request, its decision, and the list of what was decided.

The page of a request stays at its address for good: first it asks, then it is the record.
Opening a page never decides; a decision is posted with the digest of what was shown.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import lifecycle, reading, review
from gateway.approvals.reading import Query
from gateway.approvals.review import Reviewer, Submission
from gateway.approvals.views import ApprovalView, ReviewView
from gateway.errors import Conflict, NotAllowed, Refused
from gateway.identity import delegations
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import arguments, checks, frame, visible, words
from web.pages import inbox, telling, tools
from web.pages.telling import Teller, reviewer_of

router = APIRouter(prefix="/requests")
OUTCOMES = tuple(state for state in lifecycle.STATES if state != lifecycle.PENDING)
FILTERS = ("state", "app", "server", "tool")
Looking = Annotated[Principal, frame.needs(Permission.READ_REQUESTS)]
Deciding = Annotated[Principal, frame.needs(Permission.REVIEW_REQUESTS)]


class ReviewForm(BaseModel):
    """A review as the form posts it; empty texts count as not given."""

    verdict: Literal["approve", "deny"]
    digest: str
    reason: str = ""
    note: str = ""

    def submission(self, approval_id: str) -> Submission:
        """The same for the use case."""
        reason, note = self.reason.strip(), self.note.strip()
        return Submission(approval_id, self.verdict, self.digest, reason or None, note or None)


@router.get("")
async def history(request: Request, _reader: Looking) -> Response:
    """Decided requests, filtered by what the address says."""
    services, said = frame.web(request).services, request.query_params
    filters = {name: said[name] for name in FILTERS if said.get(name)}
    query = Query(
        state=filters.get("state"),
        app=filters.get("app"),
        server=filters.get("server"),
        tool=filters.get("tool"),
        after=said.get("after") or None,
    )
    found = await reading.listing(services.db, services.envelope, query=query)
    tell = await _teller(request)
    more = urlencode({**filters, "after": found.next}) if found.next else None
    return await frame.page(
        request,
        "history.html",
        items=[tell.decided_row(view) for view in found.items if view.state in OUTCOMES],
        query=query,
        filtered=bool(filters),
        outcomes=OUTCOMES,
        next=f"/requests?{more}" if more else None,
        first=f"/requests?{urlencode(filters)}" if query.after else None,
    )


@router.get("/{approval_id}")
async def show(request: Request, approval_id: str, reader: Looking) -> Response:
    """Everything about one request, and the way to decide it."""
    view = await _read(request, approval_id)
    tell = await _teller(request)
    definition = telling.definition(view)
    servers = frame.web(request).services.directory.view.servers
    return await frame.page(
        request,
        "request.html",
        **_facts(view, tell),
        soon=view.deadline - frame.now(request) < inbox.SOON,
        effect=tell.effect(view),
        outcome=tell.outcome(view),
        timeline=tell.timeline(view),
        objection=tell.objection(view, reader, await _lent(request, view, reader)),
        mine=_mine(view, reader),
        credential=tell.credential(servers.get(view.server_id)),
        definition=definition,
        definition_signs=tell.hazards(definition),
        beside=await tools.beside(frame.web(request).services, view),
        again=telling.again(request, view),
        check=await checks.decision(frame.web(request).services, view),
    )


@router.get("/{approval_id}/{verdict}")
async def confirm(
    request: Request,
    approval_id: str,
    verdict: Literal["approve", "deny"],
    _reader: Deciding,
    digest: str = "",
) -> Response:
    """The page that commits without script; it shows everything once more and decides nothing."""
    view = await _read(request, approval_id)
    if view.state != lifecycle.PENDING:
        return await _conflict(request, view, "already_decided", None)
    if digest not in ("", view.digest):
        return await _conflict(request, view, "digest_stale", None)
    return await _form(request, view, verdict)


@router.post("/{approval_id}/reviews")
async def decide(
    request: Request, approval_id: str, reader: Deciding, form: Annotated[ReviewForm, Form()]
) -> Response:
    """Take a review; afterwards the browser is on the request's page again."""
    problem = await _review(request, reviewer_of(reader), form.submission(approval_id))
    match problem:
        case None:
            return RedirectResponse(f"/requests/{approval_id}", 303)
        case Conflict():
            view = await _read(request, approval_id)
            return await _conflict(request, view, problem.code, form)
        case _:
            view = await _read(request, approval_id)
            return await _form(request, view, form.verdict, form, problem)


@router.post("/{approval_id}/withdraw")
async def withdraw(request: Request, approval_id: str, reader: Deciding) -> Response:
    """Take one's own review back; afterwards the browser is on the request's page again."""
    context, now = frame.web(request).services.approvals, frame.now(request)
    try:
        await review.withdraw(context, reviewer_of(reader), approval_id, now=now)
    except Conflict as problem:
        return await _conflict(request, await _read(request, approval_id), problem.code, None)
    return RedirectResponse(f"/requests/{approval_id}", 303)


async def _review(
    request: Request, reviewer: Reviewer, submission: Submission
) -> Conflict | Refused | NotAllowed | None:
    context = frame.web(request).services.approvals
    try:
        await review.review(context, reviewer, submission, now=frame.now(request))
    except (Conflict, Refused) as problem:
        return problem
    except NotAllowed as problem:
        if problem.code != "step_up_needed":
            raise
        return problem
    return None


async def _read(request: Request, approval_id: str) -> ApprovalView:
    services = frame.web(request).services
    return await reading.read(services.db, services.envelope, approval_id)


async def _lent(request: Request, view: ApprovalView, reader: Principal) -> list[lifecycle.Person]:
    """For whom the reader stands in, where groups matter."""
    if not view.groups or view.state != lifecycle.PENDING:
        return []
    db = frame.web(request).services.db
    lent = await delegations.lent_to(db, reader.email, frame.now(request))
    return [lifecycle.Person(other.email, other.groups) for other in lent]


def _mine(view: ApprovalView, reader: Principal) -> ReviewView | None:
    address = reader.email.casefold()
    mine = (given for given in view.reviews if given.reviewer.casefold() == address)
    return next(mine, None)


def _facts(view: ApprovalView, tell: Teller) -> dict[str, object]:
    shown = arguments.view(view.arguments)
    return {
        "view": view,
        "host": visible.host(view.server.url),
        "arguments": shown,
        "signs": tell.signals(view, shown),
    }


async def _teller(request: Request) -> Teller:
    return Teller(frame.web(request).renderer, await frame.interface(request))


async def _form(
    request: Request,
    view: ApprovalView,
    verdict: str,
    values: ReviewForm | None = None,
    problem: Refused | NotAllowed | None = None,
) -> Response:
    tell = await _teller(request)
    return await frame.page(
        request,
        "decide.html",
        problem.status if problem else 200,
        **_facts(view, tell),
        verdict=verdict,
        values=values,
        again=telling.again(request, view),
        problem=tell.problem(problem) if isinstance(problem, Refused) else tell.refusal(problem),
    )


async def _conflict(
    request: Request, view: ApprovalView, code: str, values: ReviewForm | None
) -> Response:
    sentence = words.CONFLICTS.get(code, words.CONFLICTS["digest_stale"])
    return await frame.page(
        request, "conflict.html", 409, view=view, code=code, values=values, sentence=sentence
    )
