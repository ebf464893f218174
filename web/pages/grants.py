"""What is remembered: which calls are answered without a person, and ending that."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.approvals import granted, grants
from gateway.errors import Conflict
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import frame, words

router = APIRouter(prefix="/grants")


@router.get("")
async def listing(
    request: Request,
    _reader: Annotated[Principal, frame.needs(Permission.READ_REQUESTS)],
    after: str | None = None,
) -> Response:
    """Remembered approvals, newest first."""
    services, now = frame.web(request).services, frame.now(request)
    found = await granted.listing(services.db, services.envelope, now=now, after=after or None)
    return await frame.page(
        request,
        "grants.html",
        items=found.items,
        states=words.GRANT_STATES,
        scopes=words.SCOPES,
        endings=words.GRANT_ENDINGS,
        next=f"/grants?after={found.next}" if found.next else None,
        first="/grants" if after else None,
    )


@router.post("/{grant_id}/revoke")
async def revoke(
    request: Request,
    grant_id: str,
    reader: Annotated[Principal, frame.needs(Permission.END_GRANTS)],
) -> Response:
    """End one, at once; one that has ended already is what was wanted."""
    context, now = frame.web(request).services.approvals, frame.now(request)
    with contextlib.suppress(Conflict):
        await grants.revoke(context, grant_id, by=(reader.actor, reader.email), now=now)
    return RedirectResponse("/grants", 303)
