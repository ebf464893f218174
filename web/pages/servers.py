"""Registered MCP servers: the list, one of them, adding, changing, testing and removing one.

Everybody who may look sees everything but values; forms are for who may change servers. What a
test found is shown once, in the answer to the press of the button, and kept nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import reading, server_use
from gateway.approvals.reading import Query
from gateway.approvals.server_use import Lately
from gateway.errors import GatepassError
from gateway.identity.login import Principal
from gateway.identity.roles import Permission, allowed
from gateway.registry import bindings, servers, tools, unknown
from gateway.registry.bindings import Seen
from gateway.registry.changes import By
from gateway.registry.directory import View
from gateway.registry.members import read_object
from gateway.registry.servers import ServerEntry
from gateway.registry.settings import ServerSettings, read_server
from gateway.services import Services
from web import frame, visible
from web.pages import probing
from web.pages.tools import ToolRow, who

router = APIRouter(prefix="/servers")
Looking = Annotated[Principal, frame.needs(Permission.READ_SERVERS)]
Writing = Annotated[Principal, frame.needs(Permission.WRITE_SERVERS)]
Keeping = Annotated[Principal, frame.needs(Permission.WRITE_CREDENTIALS)]
_LAST_CALLS = 10


class BindingForm(BaseModel):
    """The credential and the origin that were shown."""

    reference: str = Field(max_length=500)
    origin: str = Field(max_length=2048)


class ServerForm(BaseModel):
    """A server as its form posts it; empty texts count as not given."""

    url: str = ""
    label: str = ""
    description: str = ""
    allow_private_network: bool = False
    inject: Literal["headers", "authorization"] = "headers"
    pin: Literal["on_first_use", "accept"] = "on_first_use"
    act: Literal["save", "test"] = "save"

    def settings(self, label: str, known: ServerSettings | None = None) -> ServerSettings:
        """The same, checked; the credential stays as known."""
        given: dict[str, Any] = {
            "label": label,
            "url": self.url.strip(),
            "description": self.description.strip() or None,
            "allow_private_network": self.allow_private_network,
            "inject": self.inject,
            "tools": {"pin": self.pin},
        }
        if known is not None and known.credential is not None:
            given["credential"] = known.credential.row()
        return read_object(given, "server", read_server)


@dataclass(frozen=True)
class ServerRow:
    """One line of the list. `states` are codes of words.SERVER_STATES."""

    entry: ServerEntry
    host: visible.Host
    states: tuple[str, ...]
    lately: Lately


@dataclass(frozen=True)
class Problem:
    """Why a form was not taken: a line each, and which field is meant."""

    lines: tuple[str, ...]
    field: str

    @classmethod
    def of(cls, error: GatepassError) -> Problem:
        """The same for the page."""
        return cls(tuple(error.message.splitlines()), (error.param or "").rpartition(".")[2])


@router.get("")
async def listing(request: Request, _reader: Looking) -> Response:
    """Every registered server, and what was asked for without being one."""
    services = frame.web(request).services
    lately, view = await server_use.lately(services.db), services.directory.view
    rows = [
        ServerRow(
            entry,
            visible.host(entry.settings.url),
            states_of(entry, view),
            lately.get(entry.id, Lately()),
        )
        for entry in await servers.listing(services.db)
    ]
    strangers = await unknown.listing(services.db)
    return await frame.page(request, "servers.html", rows=rows, strangers=strangers)


@router.post("/unknown/{entry}/forget")
async def forget(request: Request, entry: str, writer: Writing) -> Response:
    """Take a server that nobody has registered off the list."""
    services, now = frame.web(request).services, frame.now(request)
    await unknown.forget(services.ledger, entry, actor=writer.actor, now=now)
    return RedirectResponse("/servers", 303)


@router.get("/new")
async def blank(request: Request, _writer: Writing, url: str = "", label: str = "") -> Response:
    """The form for a new server, filled in as far as the address says."""
    return await _form(request, ServerForm(url=url[:2048], label=label[:64]))


@router.post("/new")
async def register(
    request: Request, writer: Writing, form: Annotated[ServerForm, Form()]
) -> Response:
    """Register a server, or look at the address first; then the browser is on its page."""
    services = frame.web(request).services
    try:
        if form.act == "test":
            wanted = form.url.strip(), form.allow_private_network
            found = await probing.address(services, *wanted, writer)
            return await _form(request, form, found=found)
        settings = form.settings(form.label.strip())
        now = frame.now(request)
        await servers.register(services.ledger, settings, actor=writer.actor, now=now)
    except GatepassError as error:
        return await _form(request, form, error=_expected(error))
    await services.directory.refresh()
    return RedirectResponse(f"/servers/{settings.label}", 303)


@router.get("/{label}")
async def show(request: Request, label: str, _reader: Looking) -> Response:
    """Everything about one server."""
    return await _show(request, label)


@router.post("/{label}/test")
async def probe(request: Request, label: str, writer: Writing) -> Response:
    """Connect to the server with its credential, and show what came of it."""
    found = await probing.registered(frame.web(request).services, label, writer)
    return await _show(request, label, found)


@router.get("/{label}/settings")
async def settings(request: Request, label: str, _writer: Writing) -> Response:
    """The form of its settings."""
    entry = await servers.read(frame.web(request).services.db, label)
    known = entry.settings
    form = ServerForm(
        url=known.url,
        label=known.label,
        description=known.description or "",
        allow_private_network=known.allow_private_network,
        inject=known.inject,
        pin=known.pin,
    )
    return await _form(request, form, entry)


@router.post("/{label}/settings")
async def change(
    request: Request, label: str, writer: Writing, form: Annotated[ServerForm, Form()]
) -> Response:
    """Give it other settings; its credential stays, unless the address takes it away."""
    services, now = frame.web(request).services, frame.now(request)
    entry = await servers.read(services.db, label)
    try:
        wanted = form.settings(label, entry.settings)
        binds = bindings.how(writer.actor) if may_bind(writer) else None
        await servers.change(services.ledger, wanted, actor=writer.actor, now=now, binds=binds)
    except GatepassError as error:
        return await _form(request, form, entry, error=_expected(error))
    await services.directory.refresh()
    return RedirectResponse(f"/servers/{label}", 303)


@router.post("/{label}/binding")
async def bind(
    request: Request, label: str, keeper: Keeping, form: Annotated[BindingForm, Form()]
) -> Response:
    """Confirm that the credential may be sent to where the server is now, as it was shown."""
    services, seen = frame.web(request).services, Seen(form.reference, form.origin)
    await servers.bind(services.ledger, label, seen, By(keeper.actor, frame.now(request)))
    await services.directory.refresh()
    return RedirectResponse(f"/servers/{label}#credential", 303)


@router.get("/{label}/remove")
async def leaving(request: Request, label: str, _writer: Writing) -> Response:
    """What would be denied without the server, and the button."""
    services, now = frame.web(request).services, frame.now(request)
    entry = await servers.read(services.db, label)
    named = (entry.id, label)
    resting = await server_use.rests_on(services.db, services.directory.view, named, now)
    return await frame.page(request, "server_remove.html", entry=entry, resting=resting)


@router.post("/{label}/remove")
async def remove(request: Request, label: str, writer: Writing) -> Response:
    """Remove it; calls to it are refused from now on."""
    services, now = frame.web(request).services, frame.now(request)
    await servers.remove(services.ledger, label, actor=writer.actor, now=now)
    await services.directory.refresh()
    return RedirectResponse("/servers", 303)


def states_of(entry: ServerEntry, view: View) -> tuple[str, ...]:
    """What has to be said of a server, most urgent first; registered when there is nothing."""
    label = entry.settings.label
    paused = any(pause.scope == "server" and pause.target == label for pause in view.pauses)
    found = {
        "paused": paused,
        "no_value": value_missing(entry),
        "unbound": entry.settings.credential is not None and entry.binding is None,
        "changed": entry.changed_tools > 0,
    }
    return tuple(code for code, holds in found.items() if holds) or ("registered",)


def value_missing(entry: ServerEntry) -> bool:
    """Whether the credential should be kept here, and is not."""
    kept = entry.settings.credential
    return kept is not None and kept.source.startswith("sealed:") and entry.stored_at is None


def may_bind(person: Principal) -> bool:
    """Whether a credential that this person sets is bound to the server."""
    return allowed(person.roles, Permission.WRITE_CREDENTIALS)


async def shared_with(services: Services, entry: ServerEntry) -> list[str]:
    """Labels of other servers with the same reference; a value kept here is of one server only."""
    kept = entry.settings.credential
    if kept is None or kept.source.startswith("sealed:"):
        return []
    same = [use.server for use in await bindings.uses(services.db) if use.reference == kept.source]
    return [label for label in same if label != entry.settings.label]


async def _origin(services: Services, label: str) -> str:
    """Where the credential of a server would go."""
    uses = (use for use in await bindings.uses(services.db) if use.server == label)
    return next((use.origin for use in uses), "")


async def _show(request: Request, label: str, found: probing.Found | None = None) -> Response:
    services, now = frame.web(request).services, frame.now(request)
    entry = await servers.read(services.db, label)
    view = services.directory.view
    query = Query(server=label, limit=_LAST_CALLS)
    newest = await reading.listing(services.db, services.envelope, query=query)
    calls = [call for call in newest.items if call.server_id == entry.id]
    sent = next((call for call in calls if call.credential), None)
    return await frame.page(
        request,
        "server.html",
        entry=entry,
        host=visible.host(entry.settings.url),
        codes=states_of(entry, view),
        value_missing=value_missing(entry),
        shared=await shared_with(services, entry),
        origin=await _origin(services, label),
        bound_by=entry.binding and await who(services, entry.binding.by),
        sent=sent,
        tools=[ToolRow.of(label, state) for state in await tools.listing(services.db, label)],
        calls=calls,
        resting=await server_use.rests_on(services.db, view, (entry.id, label), now),
        found=found,
    )


async def _form(
    request: Request,
    form: ServerForm,
    entry: ServerEntry | None = None,
    *,
    error: GatepassError | None = None,
    found: probing.Found | None = None,
) -> Response:
    return await frame.page(
        request,
        "server_form.html",
        error.status if error else 200,
        values=form,
        entry=entry,
        problem=Problem.of(error) if error else None,
        found=found,
    )


def _expected(error: GatepassError) -> GatepassError:
    """What a person can correct in the form; anything else has a page of its own."""
    if error.status not in (400, 409, 429):
        raise error
    return error
