"""One tool of a server: its definition as accepted and as listed, and accepting the difference.

An acceptance carries the digest of what was shown. When another definition has been listed since,
nothing is accepted and the page shows that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals.views import ApprovalView
from gateway.errors import Conflict, NotFound
from gateway.identity import people
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import accepting, servers, tools
from gateway.registry.tools import ToolState
from gateway.services import Services
from web import arguments, comparing, frame, visible, words
from web.pages.telling import Teller, exact

router = APIRouter(prefix="/servers")
Looking = Annotated[Principal, frame.needs(Permission.READ_SERVERS)]
Writing = Annotated[Principal, frame.needs(Permission.WRITE_SERVERS)]


class AnswerForm(BaseModel):
    """What is said of the definition that was shown."""

    digest: str = Field(max_length=80)
    answer: Literal["accept", "refuse"] = "accept"


@dataclass(frozen=True)
class ToolRow:
    """One line of a server's tools."""

    tool: ToolState
    effect: str
    address: str

    @classmethod
    def of(cls, label: str, tool: ToolState) -> ToolRow:
        """The same for the page."""
        return cls(tool, words.effect_of(tool.listed), address(label, tool.name))


@dataclass(frozen=True)
class Beside:
    """What is known of a tool, beside a request for a call of it.

    `compared` when the request rests on another definition than the accepted one.
    """

    address: str
    accepted_at: datetime | None
    accepted_by: str | None
    compared: comparing.Comparison | None


def address(label: str, tool: str) -> str:
    """Where the page of a tool is, whatever its server has named it.

    Browsers take `.` and `..` for steps in a path even when they are escaped: such names are
    written with a `~` before them.
    """
    name = f"~{tool}" if tool in (".", "..") or tool.startswith("~") else tool
    return f"/servers/{label}/tools/{quote(name, safe='')}"


@router.get("/{label}/tools/{tool:path}")
async def show(request: Request, label: str, tool: str, _reader: Looking) -> Response:
    """The definition as accepted and as listed, side by side where they differ."""
    return await _page(request, label, _named(tool))


@router.post("/{label}/tools/{tool:path}")
async def answer(
    request: Request, label: str, tool: str, writer: Writing, form: Annotated[AnswerForm, Form()]
) -> Response:
    """Accept or refuse exactly the definition that was shown."""
    services, name = frame.web(request).services, _named(tool)
    said = accepting.accept if form.answer == "accept" else accepting.refuse
    seen, now = (name, form.digest), frame.now(request)
    try:
        await said(services.ledger, label, seen, actor=writer.actor, now=now)
    except Conflict as problem:
        return await _page(request, label, name, problem)
    return RedirectResponse(address(label, name), 303)


async def who(services: Services, ref: str | None) -> str | None:
    """The e-mail address behind the name of an actor; None when nobody signed in did it."""
    if ref is None or not ref.startswith("usr_"):
        return None
    try:
        return (await people.read(services.db, ref)).email
    except NotFound:
        return ref


async def beside(services: Services, view: ApprovalView) -> Beside | None:
    """The tool of a request; None when its server is not registered any more, or unlisted."""
    server = services.directory.view.servers.get(view.server_id)
    tool = (await tools.known(services.db, view.server_id)).get(view.tool)
    if server is None or tool is None:
        return None
    other = view.definition_digest != tool.pinned_digest
    differs = other and view.definition is not None and tool.pinned is not None
    return Beside(
        address(server.label, tool.name),
        tool.pinned_at,
        await who(services, tool.pinned_by),
        comparing.compare(tool.pinned, view.definition) if differs else None,
    )


async def _page(
    request: Request, label: str, name: str, problem: Conflict | None = None
) -> Response:
    services = frame.web(request).services
    entry, tool = await servers.read(services.db, label), await tools.read(services.db, label, name)
    tell = Teller(frame.web(request).renderer, await frame.interface(request))
    listed = arguments.view(exact(tool.listed))
    pinned = tool.pinned if tool.changed else None
    return await frame.page(
        request,
        "tool.html",
        problem.status if problem else 200,
        entry=entry,
        host=visible.host(entry.settings.url),
        row=ToolRow.of(label, tool),
        pinned=None if pinned is None else arguments.view(exact(pinned)),
        listed=listed,
        compared=None if pinned is None else comparing.compare(pinned, tool.listed),
        signs=tell.signs(tool.signs) + tell.hazards(listed),
        accepted_by=await who(services, tool.pinned_by),
        refused_by=await who(services, tool.refused_by),
        problem=tell.refusal(problem),
    )


def _named(tool: str) -> str:
    return tool.removeprefix("~")
