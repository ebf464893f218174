"""Oneself: who one is here, one's sessions and access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Form
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.errors import Refused
from gateway.identity import login, people, tokens
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from web import frame
from web.pages import sign_in

router = APIRouter(prefix="/account")
Owner = Annotated[Principal, frame.needs(Permission.OWN_TOKENS)]


class TokenForm(BaseModel):
    """A token to make."""

    days: int = Field(30, ge=1, le=366)
    may: str = Field("read", pattern="^(read|all)$")


@router.get("")
async def show(request: Request, reader: Owner) -> Response:
    """Roles and where they come from, tokens with their last use."""
    return await _page(request, reader)


@router.post("/tokens")
async def create(request: Request, reader: Owner, form: Annotated[TokenForm, Form()]) -> Response:
    """Make a token; the page that answers shows it, this once."""
    services = frame.web(request).services
    scopes = tokens.scopes(["read"], reader.roles) if form.may == "read" else None
    try:
        made = await people.create_token(
            services.ledger,
            reader.user_id,
            lifetime=tokens.lifetime(form.days, services.settings.token_days),
            scopes=scopes,
            actor=reader.actor,
            now=frame.now(request),
        )
    except Refused as problem:
        return await _page(request, reader, problem=problem)
    return await _page(request, reader, made=made)


@router.post("/tokens/{token_id}/revoke")
async def revoke(request: Request, reader: Owner, token_id: str) -> Response:
    """Refuse a token of one's own from now on."""
    await people.revoke_token(
        frame.web(request).services.ledger,
        token_id,
        owner=reader.user_id,
        actor=reader.actor,
        now=frame.now(request),
    )
    return RedirectResponse("/account", 303)


@router.post("/sign-out-everywhere")
async def sign_out_everywhere(request: Request, reader: Owner) -> Response:
    """End every session of one's own, this one too."""
    await login.sign_out_everywhere(
        frame.web(request).services.ledger,
        reader.user_id,
        actor=reader.actor,
        now=frame.now(request),
    )
    return await sign_in.left(request)


async def _page(
    request: Request,
    reader: Principal,
    *,
    made: str | None = None,
    problem: Refused | None = None,
) -> Response:
    services = frame.web(request).services
    now = frame.now(request)
    listed = await people.tokens_of(services.db, reader.user_id)
    return await frame.page(
        request,
        "account.html",
        problem.status if problem else 200,
        user=await people.read(services.db, reader.user_id),
        provider=services.settings.oidc_name,
        tokens=[each for each in listed if _is_live(each, now)],
        longest=services.settings.token_days,
        made=made,
        problem=problem.message if problem else None,
    )


def _is_live(token: tokens.TokenView, now: datetime) -> bool:
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > now)
