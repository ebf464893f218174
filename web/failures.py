"""Error pages written for people: what happened, what to do, code and request id.

Names no internals: the cause of an unexpected failure is in the log, under the same request id.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import GatepassError
from gateway.telemetry import failure, log
from web import frame, words
from web.frame import SignInNeeded
from web.translation import N_

_CODES = {404: "not_found", 405: "method_not_allowed"}


def install(pages: FastAPI) -> None:
    """Answer every failure of `pages` with a page."""
    pages.exception_handler(SignInNeeded)(_sign_in)
    pages.exception_handler(GatepassError)(_expected)
    pages.exception_handler(HTTPException)(_http)
    pages.exception_handler(RequestValidationError)(_malformed)
    pages.exception_handler(Exception)(_unexpected)


async def _sign_in(_request: Request, need: SignInNeeded) -> Response:
    return RedirectResponse(need.location, 303)


async def _expected(request: Request, error: GatepassError) -> Response:
    return await _page(request, error.status, error.code, error.message)


async def _http(request: Request, error: HTTPException) -> Response:
    return await _page(request, error.status_code, _CODES.get(error.status_code, "http_error"))


async def _malformed(request: Request, _error: RequestValidationError) -> Response:
    # The values are not repeated: they can hold what somebody pasted by mistake.
    return await _page(request, 400, "invalid_request")


async def _unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "-")
    log.error("page_failed", request=request_id, **failure(error))
    return await _page(request, 500, "internal_error", framed=False)


async def _page(
    request: Request, status: int, code: str, detail: str | None = None, *, framed: bool = True
) -> Response:
    parts = frame.web(request)
    if framed and status not in (401, 503):
        await frame.recognise(request)
    ui = parts.renderer.interface(request, frame.now(request))
    title, advice = words.ERRORS.get(status, words.ERRORS[500 if status >= 500 else 400])
    inside = ui.principal is not None
    link = ("/inbox", N_("To the inbox")) if inside else ("/sign-in", N_("To the sign-in page"))
    values = {
        "status": status,
        "code": code,
        "title": parts.renderer.translate(ui.language, title),
        "advice": parts.renderer.translate(ui.language, advice),
        "detail": detail,
        "back": link[0],
        "back_text": parts.renderer.translate(ui.language, link[1]),
    }
    return parts.renderer.page(ui, "error.html", values, status)
