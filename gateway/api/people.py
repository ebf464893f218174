"""Users and personal access tokens as JSON.

A token or link is in one answer only: the one that made it. Nobody can read one back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.api.access import After, House, Limit, may
from gateway.errors import Refused
from gateway.identity import codes, login, people, tokens
from gateway.identity.login import Principal
from gateway.identity.roles import Permission

RoleName = Literal["viewer", "reviewer", "break_glass", "auditor", "admin"]


class UserOut(BaseModel):
    """A user, with roles and reviewer groups."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    email: str
    name: str | None
    roles: list[RoleName]
    groups: list[str]
    created_at: datetime
    disabled_at: datetime | None
    source: Literal["local", "provider"] = Field(
        "local", description="provider: the identity provider says which roles they have."
    )


class UserPage(BaseModel):
    """Users in order of creation."""

    model_config = ConfigDict(from_attributes=True)
    items: list[UserOut]
    next: str | None


class WhoOut(BaseModel):
    """Who is asking."""

    model_config = ConfigDict(from_attributes=True)
    user_id: str
    email: str
    name: str | None
    roles: list[str]
    groups: list[str]
    auth: str
    scopes: list[str] | None = Field(None, description="Of the token, if it is a narrowed one.")


class UserIn(BaseModel):
    """A user to create."""

    model_config = ConfigDict(extra="forbid", strict=True)
    email: str = Field(max_length=254)
    name: str | None = Field(None, max_length=100)
    roles: list[RoleName] = Field(max_length=5)


class UserChange(BaseModel):
    """What is to be different: one member at a time, so that all of it happens or none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    roles: list[RoleName] | None = Field(None, max_length=5)
    disabled: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.roles is None) == (self.disabled is None):
            raise ValueError("send either roles or disabled")
        return self


class LinkOut(BaseModel):
    """A one-time sign-in link, shown this once."""

    url: str
    expires_in_seconds: int


class TokenOut(BaseModel):
    """What is known of a token; not the token."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = Field(None, description="Last use, to the minute.")
    scopes: list[str] | None = Field(None, description="null: everything that its owner may.")


class TokenList(BaseModel):
    """One's own tokens, newest first."""

    items: list[TokenOut]


class TokenIn(BaseModel):
    """A token to make for oneself."""

    model_config = ConfigDict(extra="forbid", strict=True)
    expires_in_days: int | None = Field(
        90, ge=1, le=366, description="null: as long as this installation allows."
    )
    scopes: list[Annotated[Permission, Field(strict=False)]] | None = Field(
        None, max_length=50, description="null: everything that you may."
    )


class NewTokenOut(BaseModel):
    """A token, shown this once."""

    id: str
    token: str


router = APIRouter(tags=["people"])
UserReader = Annotated[Principal, Depends(may(Permission.READ_USERS))]
UserWriter = Annotated[Principal, Depends(may(Permission.WRITE_USERS))]
TokenOwner = Annotated[Principal, Depends(may(Permission.OWN_TOKENS))]


@router.get("/me", response_model=WhoOut)
async def read_me(who: TokenOwner) -> Any:
    """Who this session or token belongs to."""
    return who


@router.get("/users", response_model=UserPage)
async def list_users(house: House, _who: UserReader, after: After = None, limit: Limit = 50) -> Any:
    """Users in order of creation."""
    return await people.listing(house.db, after=after, limit=limit)


@router.post("/users", status_code=201, response_model=UserOut)
async def create_user(house: House, who: UserWriter, body: UserIn) -> Any:
    """Create a user. Give them a sign-in link next."""
    new = people.NewUser(body.email, tuple(body.roles), body.name)
    return await people.create_user(house.ledger, new, actor=who.actor, now=house.clock())


@router.get("/users/{user_id}", response_model=UserOut)
async def read_user(house: House, _who: UserReader, user_id: str) -> Any:
    """One user, by id or e-mail address."""
    return await people.read(house.db, user_id)


@router.patch("/users/{user_id}", response_model=UserOut)
async def change_user(house: House, who: UserWriter, user_id: str, body: UserChange) -> Any:
    """Change roles, disable or enable. The last admin cannot be removed."""
    now = house.clock()
    if body.roles is not None:
        return await people.set_roles(house.ledger, user_id, body.roles, actor=who.actor, now=now)
    change = people.disable if body.disabled else people.enable
    return await change(house.ledger, user_id, actor=who.actor, now=now)


@router.post("/users/{user_id}/link", status_code=201, response_model=LinkOut)
async def create_link(house: House, who: UserWriter, user_id: str) -> Any:
    """A one-time sign-in link for this user, shown this once, good for 15 minutes."""
    user = await people.read(house.db, user_id)
    code = await login.create_link(house.ledger, user.id, actor=who.actor, now=house.clock())
    return LinkOut(
        url=login.link_url(house.settings.public_url, code),
        expires_in_seconds=int(login.LINK_LIFETIME.total_seconds()),
    )


@router.get("/tokens", response_model=TokenList)
async def list_tokens(house: House, who: TokenOwner) -> Any:
    """One's own tokens, newest first."""
    return {"items": await people.tokens_of(house.db, who.user_id)}


@router.post("/tokens", status_code=201, response_model=NewTokenOut)
async def create_token(house: House, who: TokenOwner, body: TokenIn) -> Any:
    """Make a token for oneself; it can do what its user can do. Shown this once."""
    wanted = None if body.scopes is None else {scope.value for scope in body.scopes}
    if who.scopes is not None and (wanted is None or not wanted <= who.scopes):
        raise Refused("A token cannot make one that may do more than itself.", param="scopes")
    token = await people.create_token(
        house.ledger,
        who.user_id,
        lifetime=tokens.lifetime(body.expires_in_days, house.settings.token_days),
        scopes=wanted,
        actor=who.actor,
        now=house.clock(),
    )
    return NewTokenOut(id=codes.token_id(token) or "", token=token)


@router.delete("/tokens/{token_id}", status_code=204)
async def revoke_token(house: House, who: TokenOwner, token_id: str) -> None:
    """Revoke one's own token, at once. An admin disables the user instead."""
    await people.revoke_token(
        house.ledger, token_id, owner=who.user_id, actor=who.actor, now=house.clock()
    )
