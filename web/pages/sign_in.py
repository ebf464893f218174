"""Signing in with a one-time link, and out again; the way through a provider begins here too.

Opening a link does nothing: mail scanners open links. Only the button behind it uses it up.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import NotAllowed, Unavailable
from gateway.identity import login
from web import frame

router = APIRouter()
_LONGEST = 200


@router.get("/sign-in")
@router.get("/sign-in/link")
async def sign_in(request: Request, code: str = "", next: str = "") -> Response:  # noqa: A002
    """How to get in or, with a code, the button that uses the link up."""
    template = "sign_in_link.html" if code else "sign_in.html"
    values = {"code": code[:_LONGEST], "next": frame.local(next) if next else ""}
    settings, provider = frame.web(request).services.settings, frame.web(request).services.sign_in
    return await frame.page(
        request,
        template,
        provider=settings.oidc_name if provider else None,
        links=settings.local_sign_in,
        **values,
    )


@router.post("/sign-in/link")
async def redeem(
    request: Request,
    code: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002
) -> Response:
    """Use the link up and begin a fresh session."""
    web = frame.web(request)
    if not web.services.settings.local_sign_in:
        raise NotAllowed(
            "One-time links alone sign nobody in here: use the identity provider.",
            code="links_off",
        )
    session = await login.redeem(
        web.services.ledger,
        code.strip(),
        previous=request.cookies.get(web.cookie),
        provided=web.services.sign_in is not None,
        now=frame.now(request),
    )
    return entered(request, session, next)


def entered(request: Request, session: str, next: str) -> Response:  # noqa: A002
    """To the page that was asked for, with the session's cookie."""
    web = frame.web(request)
    answer = RedirectResponse(frame.local(next) if next else "/inbox", 303)
    answer.set_cookie(
        web.cookie,
        session,
        max_age=int(login.ABSOLUTE.total_seconds()),
        secure=web.site.secure,
        httponly=True,
        samesite="lax",
    )
    return answer


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """End the session here and on the server, and at the provider that it came from."""
    web = frame.web(request)
    if not (code := request.cookies.get(web.cookie)):
        return await left(request)
    await login.sign_out(web.services.ledger, code, now=frame.now(request))
    return await left(request, await _farewell(request, code))


async def left(request: Request, elsewhere: str | None = None) -> Response:
    """Signed out here; on the way to be signed out `elsewhere`, if that is to be."""
    web = frame.web(request)
    answer: Response = RedirectResponse("/sign-in", 303)
    if elsewhere is not None:
        # A form may lead to our own pages only, so that the browser goes on from a page.
        answer = await frame.page(request, "signed_out.html", elsewhere=elsewhere)
    answer.delete_cookie(web.cookie, secure=web.site.secure, httponly=True, samesite="lax")
    return answer


async def _farewell(request: Request, code: str) -> str | None:
    services = frame.web(request).services
    if services.sign_in is None:
        return None
    try:
        token = await login.id_token(services.db, services.envelope, code)
    except Unavailable:
        return None  # sealed under another master key: out here is what counts
    return await services.sign_in.farewell(token) if token else None
