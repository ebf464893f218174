"""Grants as JSON: what is remembered, remembering an approval, what it would have covered, ending.

Parses, calls one use case, renders; holds no rule about who may remember what.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.access import After, House, Limit, may
from gateway.approvals import granted, grants
from gateway.approvals.case import Reviewer
from gateway.approvals.terms import MOST_USES, Terms
from gateway.identity.login import Principal
from gateway.identity.roles import Permission

router = APIRouter(tags=["grants"])
Reader = Annotated[Principal, Depends(may(Permission.READ_REQUESTS))]
Decider = Annotated[Principal, Depends(may(Permission.REVIEW_REQUESTS))]
Ender = Annotated[Principal, Depends(may(Permission.END_GRANTS))]


class TermsIn(BaseModel):
    """What is remembered: exactly what the person was shown and chose."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["exact", "fields", "tool"] = Field(
        description="exact: the same argument string; fields: the named members; tool: any."
    )
    fields: list[Annotated[str, Field(max_length=500)]] = Field(
        default_factory=list,
        max_length=50,
        description="JSON pointers of the arguments that must be equal, with kind `fields`.",
    )
    scope: Literal["thread", "end_user", "app"] = Field(description="For whom.")
    until: AwareDatetime = Field(description="30 days ahead at most.")
    max_uses: int | None = Field(None, ge=1, le=MOST_USES)

    def terms(self) -> Terms:
        """The same for the use case."""
        return Terms(self.kind, self.scope, self.until, tuple(self.fields), self.max_uses)


class GrantIn(TermsIn):
    """An approval to remember."""

    approval_id: str = Field(max_length=100, description="An approved request.")


class GrantOut(BaseModel):
    """A remembered approval, and what became of it."""

    model_config = ConfigDict(extra="allow")
    id: str
    state: Literal["live", "used_up", "expired", "ended"]
    approval_id: str
    app: str
    tool: str
    kind: str
    scope: str
    uses: int
    max_uses: int | None
    creator: str
    expires_at: datetime


class GrantPage(BaseModel):
    """Grants, newest first."""

    items: list[GrantOut]
    next: str | None


class CoverageOut(BaseModel):
    """How many of the last held calls of the app these terms would have covered."""

    model_config = ConfigDict(from_attributes=True)
    covered: int
    of: int


@router.get("/grants", response_model=GrantPage)
async def list_grants(
    house: House,
    _who: Reader,
    live: Annotated[bool, Query(description="Only those that may still answer.")] = False,
    after: After = None,
    limit: Limit = 50,
) -> Any:
    """Remembered approvals, newest first."""
    page = await granted.listing(
        house.db, house.envelope, now=house.clock(), live=live, after=after, limit=limit
    )
    return {"items": [item.document() for item in page.items], "next": page.next}


@router.post("/grants", status_code=201, response_model=GrantOut)
async def create_grant(house: House, who: Decider, body: GrantIn) -> Any:
    """Remember an approved request. Calls like it are then answered by the grant."""
    reviewer = reviewer_of(who)
    now = house.clock()
    grant_id = await grants.remember_later(
        house.approvals, reviewer, body.approval_id, body.terms(), now=now
    )
    return (await granted.read(house.db, house.envelope, grant_id, now=now)).document()


@router.post("/grants/preview", response_model=CoverageOut)
async def preview_grant(house: House, _who: Decider, body: GrantIn) -> Any:
    """What these terms would have covered of the last 100 held calls of the app."""
    return await granted.preview(
        house.db, house.envelope, body.approval_id, body.terms(), now=house.clock()
    )


@router.get("/grants/{grant_id}", response_model=GrantOut)
async def read_grant(house: House, _who: Reader, grant_id: str) -> Any:
    """One remembered approval."""
    return (await granted.read(house.db, house.envelope, grant_id, now=house.clock())).document()


@router.post("/grants/{grant_id}/revoke", response_model=GrantOut)
async def revoke_grant(house: House, who: Ender, grant_id: str) -> Any:
    """End a grant, at once."""
    now = house.clock()
    await grants.revoke(house.approvals, grant_id, by=(who.actor, who.email), now=now)
    return (await granted.read(house.db, house.envelope, grant_id, now=now)).document()


def reviewer_of(who: Principal) -> Reviewer:
    """Who is asking, as somebody who decides over the API."""
    return Reviewer(
        user_id=who.user_id,
        email=who.email,
        roles=who.roles,
        groups=who.groups,
        channel="api",
        auth=who.auth,
        authenticated_at=who.authenticated_at,
    )
