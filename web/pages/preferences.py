"""Language, theme, time zone and shortcuts of this browser."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from web import frame, preferences, words

router = APIRouter()


@router.get("/preferences")
async def show(request: Request) -> Response:
    """The form; also for who is not signed in."""
    await frame.recognise(request)
    return await frame.page(request, "preferences.html", languages=words.LANGUAGES.items())


@router.post("/preferences")
async def save(request: Request) -> Response:
    """Keep what was said in a cookie of this browser; what was not said stays as it was."""
    async with request.form(max_files=0, max_fields=10) as form:
        said = {name: value for name, value in form.items() if isinstance(value, str)}
    kept = preferences.read(request.cookies.get(preferences.COOKIE, ""))
    answer = RedirectResponse("/preferences", 303)
    answer.set_cookie(
        preferences.COOKIE,
        preferences.changed(kept, said).cookie(),
        max_age=preferences.MAX_AGE,
        secure=frame.web(request).site.secure,
        httponly=True,
        samesite="lax",
    )
    return answer
