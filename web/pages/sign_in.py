"""Signing in with a one-time link, and out again.

Opening a link does nothing: mail scanners open links. Only the button behind it uses it up.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

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
    return await frame.page(request, template, **values)


@router.post("/sign-in/link")
async def redeem(
    request: Request,
    code: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002
) -> Response:
    """Use the link up and begin a fresh session."""
    web = frame.web(request)
    previous = request.cookies.get(web.cookie)
    session = await login.redeem(
        web.services.ledger, code.strip(), previous=previous, now=frame.now(request)
    )
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
    """End the session here and on the server."""
    web = frame.web(request)
    if code := request.cookies.get(web.cookie):
        await login.sign_out(web.services.ledger, code, now=frame.now(request))
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(web.cookie, secure=web.site.secure, httponly=True, samesite="lax")
    return answer
