"""To the identity provider and back; and what it tells us by itself.

Whoever comes back is let in, or gets a page with a code: never a word of what a token said.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.errors import GatepassError, NotFound
from gateway.identity import people
from gateway.openid.flow import PATIENCE, SignIn, Wish
from web import frame, words
from web.pages.sign_in import entered

router = APIRouter(prefix="/sign-in")
_LONGEST = 200
_LARGEST_NOTICE = 100_000


@router.get("/provider")
async def begin(
    request: Request,
    next: str = "",  # noqa: A002
    code: str = "",
    again: bool = False,
) -> Response:
    """Send the browser to the provider; `code` of a one-time link joins the two."""
    wish = Wish(frame.local(next) if next else "", again, code.strip()[:_LONGEST] or None)
    try:
        address, cookie = await _sign_in(request).begin(wish, now=frame.now(request))
    except GatepassError as error:
        return await _refused(request, error)
    answer = RedirectResponse(address, 303)
    answer.set_cookie(
        _cookie(request),
        cookie,
        max_age=int(PATIENCE.total_seconds()),
        secure=frame.web(request).site.secure,
        httponly=True,
        samesite="lax",
    )
    return answer


@router.get("/callback")
async def callback(request: Request) -> Response:
    """Where the provider sends the browser back to."""
    try:
        session, next_ = await _sign_in(request).finish(
            request.query_params,
            request.cookies.get(_cookie(request)),
            previous=request.cookies.get(frame.web(request).cookie),
            now=frame.now(request),
        )
        answer = entered(request, session, next_)
    except GatepassError as error:
        answer = await _refused(request, error)
    answer.delete_cookie(
        _cookie(request), secure=frame.web(request).site.secure, httponly=True, samesite="lax"
    )
    return answer


@router.post("/backchannel-logout")
async def hear(request: Request) -> Response:
    """The provider's own notice (Back-Channel Logout §2.5): its signature is all that counts."""
    headers = {"Cache-Control": "no-store"}
    if int(request.headers.get("content-length") or _LARGEST_NOTICE + 1) > _LARGEST_NOTICE:
        return JSONResponse({"error": "invalid_request"}, 400, headers)
    async with request.form(max_files=0, max_fields=5) as form:
        token = form.get("logout_token")
    try:
        if not isinstance(token, str):
            return JSONResponse({"error": "invalid_request"}, 400, headers)
        await _sign_in(request).hear(token, now=frame.now(request))
    except GatepassError as error:
        status = error.status if error.status in (404, 503) else 400
        return JSONResponse({"error": "invalid_request", "code": error.code}, status, headers)
    return Response(status_code=200, headers=headers)


def _sign_in(request: Request) -> SignIn:
    found: SignIn | None = frame.web(request).services.sign_in
    if found is None:
        raise NotFound("There is no identity provider here.")
    return found


def _cookie(request: Request) -> str:
    return f"{frame.web(request).cookie}-sign-in"


async def _refused(request: Request, error: GatepassError) -> Response:
    services = frame.web(request).services
    ask = await people.admins(services.db) if error.code in words.ASK_AN_ADMIN else ()
    return await frame.page(
        request,
        "sign_in_refused.html",
        error.status,
        code=error.code,
        sentence=words.SIGN_INS.get(error.code, words.SIGN_INS["other"]),
        ask=ask,
    )
