"""Who stands in for whom, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.access import House, may
from gateway.identity import delegations
from gateway.identity.delegations import NewDelegation, Speaker
from gateway.identity.login import Principal
from gateway.identity.roles import Permission

router = APIRouter(tags=["people"])
Delegating = Annotated[Principal, Depends(may(Permission.DELEGATE))]


class DelegationOut(BaseModel):
    """Who stands in for whom, from when to when."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    from_email: str
    to_email: str
    starts_at: datetime
    ends_at: datetime
    revoked_at: datetime | None
    state: Literal["planned", "active", "over", "revoked"]


class DelegationList(BaseModel):
    """Those that concern you, or all of them for an admin."""

    items: list[DelegationOut]


class DelegationIn(BaseModel):
    """Somebody who is to stand in."""

    model_config = ConfigDict(extra="forbid")
    from_email: str | None = Field(
        None, max_length=254, description="Yourself when absent; only an admin names another."
    )
    to_email: str = Field(max_length=254, description="A reviewer.")
    starts_at: AwareDatetime | None = Field(None, description="At once when absent.")
    ends_at: AwareDatetime = Field(description="180 days after the start at most.")


@router.get("/delegations", response_model=DelegationList)
async def list_delegations(house: House, who: Delegating) -> Any:
    """Who stands in for whom: what concerns you, or everything for an admin."""
    speaker = speaker_of(who)
    return {"items": await delegations.listing(house.db, speaker=speaker, now=house.clock())}


@router.post("/delegations", status_code=201, response_model=DelegationOut)
async def create_delegation(house: House, who: Delegating, body: DelegationIn) -> Any:
    """Let a reviewer stand in for you, with your groups."""
    now = house.clock()
    new = NewDelegation(
        body.from_email or who.email, body.to_email, body.starts_at or now, body.ends_at
    )
    return await delegations.create(house.ledger, new, speaker=speaker_of(who), now=now)


@router.post("/delegations/{delegation_id}/revoke", response_model=DelegationOut)
async def revoke_delegation(house: House, who: Delegating, delegation_id: str) -> Any:
    """End it, at once: by either of the two, or an admin."""
    return await delegations.revoke(
        house.ledger, delegation_id, speaker=speaker_of(who), now=house.clock()
    )


def speaker_of(who: Principal) -> Speaker:
    """Who is asking, as somebody who says who stands in."""
    # A token that may not write users speaks for its owner alone.
    everybody = who.may(Permission.WRITE_USERS)
    return Speaker(who.actor, who.email, who.roles if everybody else frozenset())
