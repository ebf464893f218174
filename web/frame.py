"""What pages share: who is looking, the frame around the content, what they may touch.

Owns no page. A page is `await frame.page(request, template, …)`; who may see it is said by
`Annotated[Principal, needs(…)]` on the route, never by its address.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import HTMLResponse

from gateway.errors import NotAllowed
from gateway.identity import login
from gateway.identity.login import Principal
from gateway.identity.roles import Permission, allowed
from gateway.services import Services
from web import checks
from web.assets import Assets
from web.rendering import Interface, Renderer
from web.security import Site


@dataclass(frozen=True)
class Web:
    """The ready parts of the pages; routes find it at `request.app.state.web`."""

    services: Services
    renderer: Renderer
    assets: Assets
    site: Site

    @property
    def cookie(self) -> str:
        """Name of the session cookie."""
        return login.cookie_name(self.site.public_url)


class SignInNeeded(Exception):
    """Nobody is signed in; `where` is the page to come back to."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    @property
    def location(self) -> str:
        """Where the browser is sent."""
        return "/sign-in" if self.where == "/" else f"/sign-in?next={quote(self.where, safe='')}"


def web(request: Request) -> Web:
    """The parts behind this request."""
    found: Web = request.app.state.web
    return found


def now(request: Request) -> datetime:
    """What time it is."""
    return web(request).services.clock()


async def principal(request: Request) -> Principal:
    """Who is signed in on this browser; raises `SignInNeeded`."""
    parts = web(request)
    code = request.cookies.get(parts.cookie)
    found = await login.session(parts.services.db, code, now(request)) if code else None
    if found is None:
        raise SignInNeeded(local(str(request.url.path)) if request.method == "GET" else "/")
    request.state.principal = found
    return found


async def recognise(request: Request) -> None:
    """Note who is signed in, if anybody, on a page that is for everybody."""
    try:
        await principal(request)
    except SignInNeeded:
        return


def needs(permission: Permission) -> Any:
    """A route parameter: the principal, who must hold `permission`."""

    async def check(request: Request) -> Principal:
        found = await principal(request)
        if not allowed(found.roles, permission):
            raise NotAllowed("Your roles do not include this page.", code="role_missing")
        return found

    return Depends(check)


async def page(
    request: Request, template: str, status: int = 200, /, **values: Any
) -> HTMLResponse:
    """One whole page: `template` inside the frame."""
    parts = web(request)
    return parts.renderer.page(await interface(request), template, values, status)


async def interface(request: Request) -> Interface:
    """Who reads, in which language, and how the ledger stands."""
    parts = web(request)
    ui = parts.renderer.interface(request, now(request))
    if ui.principal is None:
        return ui
    alarm = checks.alarm(parts.services)
    return dataclasses.replace(
        ui,
        head=await checks.head(parts.services),
        alarm=parts.renderer.translate(ui.language, alarm) if alarm else None,
        watch=await checks.watch(parts.services) if ui.may("requests.read") else None,
    )


def local(path: str) -> str:
    """`path` if it leads to a page of ours, else the front page."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if plain and path.isprintable() and "\\" not in path else "/"
