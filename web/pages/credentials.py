"""The credential of a server: where its value lives, and which header carries it.

Write-only: a value is taken, stored and never shown again, not in a page, not in a form that was
not taken, not in an address. What is shown is the reference.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field, SecretStr
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import GatepassError, Refused
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import bindings, servers
from gateway.registry.changes import By
from gateway.registry.members import read_object
from gateway.registry.servers import CredentialValue, ServerEntry
from gateway.registry.settings import ServerSettings, read_server, server_document
from web import frame, visible
from web.pages.servers import Problem, shared_with, value_missing

router = APIRouter(prefix="/servers")
Keeping = Annotated[Principal, frame.needs(Permission.WRITE_CREDENTIALS)]
_LIMIT = 16_384


class CredentialForm(BaseModel):
    """A credential as its form posts it. `kind`: a value kept here, a reference, or none."""

    kind: Literal["value", "reference", "none"]
    header: str = Field("", max_length=80)
    scheme: str = Field("", max_length=40)
    reference: str = Field("", max_length=500)
    value: SecretStr = Field(SecretStr(""), max_length=_LIMIT)

    def bound(self, known: ServerSettings) -> ServerSettings:
        """The settings of the server with this reference, or without a credential; checked."""
        members = {**server_document(known), "tools": {"pin": known.pin}}
        members.pop("credential", None)
        if self.kind == "reference":
            given = {"header": self.header, "scheme": self.scheme, "from": self.reference.strip()}
            members["credential"] = {name: text for name, text in given.items() if text}
        return read_object(members, "server", read_server)


@router.get("/{label}/credential")
async def show(request: Request, label: str, _keeper: Keeping) -> Response:
    """The form; it holds the reference and no value."""
    return await _page(request, await servers.read(frame.web(request).services.db, label))


@router.post("/{label}/credential")
async def store(
    request: Request, label: str, keeper: Keeping, form: Annotated[CredentialForm, Form()]
) -> Response:
    """Store the value, or bind the reference; then the browser is on the server's page."""
    services = frame.web(request).services
    entry = await servers.read(services.db, label)
    try:
        await _store(request, entry, keeper, form)
    except Refused as error:
        return await _page(request, entry, form, error)
    await services.directory.refresh()
    return RedirectResponse(f"/servers/{label}#credential", 303)


async def _store(
    request: Request, entry: ServerEntry, keeper: Principal, form: CredentialForm
) -> None:
    services, now, label = frame.web(request).services, frame.now(request), entry.settings.label
    if form.kind != "value":
        wanted = form.bound(entry.settings)
        how = bindings.how(keeper.actor)
        await servers.change(services.ledger, wanted, actor=keeper.actor, now=now, binds=how)
        return
    value = form.value.get_secret_value()
    if not value:
        raise Refused("The value is missing.", param="value")
    given = CredentialValue(value, form.header or None, form.scheme or None)
    by = By(keeper.actor, now)
    await servers.set_credential(services.ledger, services.envelope, label, given, by)


async def _page(
    request: Request,
    entry: ServerEntry,
    form: CredentialForm | None = None,
    error: GatepassError | None = None,
) -> Response:
    kept = entry.settings.credential
    elsewhere = kept is not None and not kept.source.startswith("sealed:")
    return await frame.page(
        request,
        "credential.html",
        error.status if error else 200,
        entry=entry,
        host=visible.host(entry.settings.url),
        kind=form.kind if form else "reference" if elsewhere else "value",
        header=form.header if form else kept.header if kept else "Authorization",
        scheme=form.scheme if form else (kept.scheme or "") if kept else "Bearer",
        reference=form.reference if form else kept.source if kept and elsewhere else "",
        shared=await shared_with(frame.web(request).services, entry),
        value_missing=value_missing(entry),
        problem=Problem.of(error) if error else None,
    )
