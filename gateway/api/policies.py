"""Policy versions and reviewer groups as JSON, and what other rules would have done."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import House, may
from gateway.approvals import simulation
from gateway.errors import NotFound
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.policy import parse
from gateway.registry import groups, policies
from gateway.registry.members import read_object
from gateway.registry.settings import read_group


class PolicyIn(BaseModel):
    """A list of rules, as in a declarative file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rules: list[dict[str, Any]] = Field(max_length=1000)


class PolicyOut(BaseModel):
    """An immutable version of the rules; one at most is active."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    number: int
    digest: str
    active: bool
    rules: list[dict[str, Any]]
    created_at: datetime
    created_by: str
    activated_at: datetime | None


class PolicyList(BaseModel):
    """Versions, newest first."""

    items: list[PolicyOut]


class SimulateIn(PolicyIn):
    """Rules to try on the calls that were asked for last."""

    last: int = Field(100, ge=1, le=1000)


class GroupOut(BaseModel):
    """A reviewer group: e-mail addresses of the people a rule may ask for."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    members: list[str]


class GroupList(BaseModel):
    """Every reviewer group, by name."""

    items: list[GroupOut]


class GroupIn(BaseModel):
    """The members of a group, all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    members: list[str] = Field(max_length=1000)


router = APIRouter(tags=["policies"])
Reader = Annotated[Principal, Depends(may(Permission.READ_POLICIES))]
Writer = Annotated[Principal, Depends(may(Permission.WRITE_POLICIES))]
PeopleReader = Annotated[Principal, Depends(may(Permission.READ_USERS))]
PeopleWriter = Annotated[Principal, Depends(may(Permission.WRITE_USERS))]


@router.get("/policies", response_model=PolicyList)
async def list_policies(
    house: House, _who: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> Any:
    """Versions of the policy, newest first."""
    return {"items": await policies.listing(house.db, limit=limit)}


@router.post("/policies", status_code=201, response_model=PolicyOut)
async def save_policy(house: House, who: Writer, body: PolicyIn) -> Any:
    """Save these rules as the next version and put it into force."""
    policy = parse(body.rules, "rules")
    entry = await policies.save(house.ledger, policy, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return entry


@router.get("/policies/active", response_model=PolicyOut)
async def read_active_policy(house: House, _who: Reader) -> Any:
    """The version in force; 404 while there is none, and then every call is held."""
    entry = await policies.read_active(house.db)
    if entry is None:
        raise NotFound("No policy is in force: every call is held.", code="policy_unknown")
    return entry


@router.post("/policies/simulate", response_model=simulation.Outcome)
async def simulate_policy(house: House, _who: Reader, body: SimulateIn) -> Any:
    """What these rules would have done with the calls asked for last, where that differs."""
    return await simulation.simulate(
        house.db, house.envelope, parse(body.rules, "rules"), last=body.last
    )


@router.get("/policies/{number}", response_model=PolicyOut)
async def read_policy(house: House, _who: Reader, number: int) -> Any:
    """One version."""
    return await policies.read(house.db, number)


@router.post("/policies/{number}/activate", response_model=PolicyOut)
async def activate_policy(house: House, who: Writer, number: int) -> Any:
    """Put an older version into force again."""
    entry = await policies.activate(house.ledger, number, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return entry


@router.get("/reviewer-groups", response_model=GroupList)
async def list_groups(house: House, _who: PeopleReader) -> Any:
    """Every reviewer group, by name."""
    return {"items": await groups.listing(house.db)}


@router.put("/reviewer-groups/{name}", response_model=GroupOut)
async def set_group(house: House, who: PeopleWriter, name: str, body: GroupIn) -> Any:
    """Create a group or replace its members."""
    settings = read_object({"name": name, "members": body.members}, "group", read_group)
    kept = await groups.set_members(house.ledger, settings, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return kept


@router.delete("/reviewer-groups/{name}", status_code=204)
async def remove_group(house: House, who: PeopleWriter, name: str) -> None:
    """Remove a group; 409 while rules in force ask for it."""
    await groups.remove(house.ledger, name, actor=who.actor, now=house.clock())
    await house.directory.refresh()
