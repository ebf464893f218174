"""One stream of server-sent events per tab: says what changed, never what it contains.

The page then fetches itself again, so that every look is permitted anew. A stream ends after a
while, and the browser comes back with its cookie: a session that has ended hears nothing more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Protocol

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import frame

router = APIRouter()
_GLANCE = 1.0  # seconds between looks at whether the browser is still there
_BREATH = 15  # glances between two comments that keep proxies from closing the stream
_LIFE = 300  # glances after which the browser has to show its cookie again
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Changes(Protocol):
    """What tells that approval requests changed; `gateway.approvals.wakeups` is one."""

    async def changes(self, after: int, seconds: float) -> int:
        """A number that has grown past `after` once something changed, or after `seconds`."""


@router.get("/live")
async def live(
    request: Request,
    _reader: Annotated[Principal, frame.needs(Permission.READ_REQUESTS)],
) -> Response:
    """Events called `requests` whenever any approval request may have changed."""
    wakeups = frame.web(request).services.wakeups
    return StreamingResponse(
        events(request, wakeups), media_type="text/event-stream", headers=_HEADERS
    )


async def events(request: Request, wakeups: Changes) -> AsyncIterator[str]:
    """The text of the stream, until the browser leaves or has to come back."""
    seen = await wakeups.changes(-1, 0)
    yield "retry: 3000\n: Gatepass\n\n"
    for glance in range(_LIFE):
        if _stopping(request) or await request.is_disconnected():
            return
        newest = await wakeups.changes(seen, _GLANCE)
        if newest != seen:
            seen = newest
            yield f"event: requests\ndata: {newest}\n\n"
        elif glance % _BREATH == _BREATH - 1:
            yield ": still here\n\n"


def _stopping(request: Request) -> bool:
    """Whether the server wants to end; it waits for streams, and this one would go on."""
    ask = request.scope.get("extensions", {}).get("gatepass.stopping")
    return ask is not None and bool(ask())
