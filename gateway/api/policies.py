"""Policy versions and reviewer groups as JSON, and what other rules would have done."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.access import After, House, may
from gateway.approvals import shadows, simulation
from gateway.errors import NotFound, Refused
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.policy import ChangedRule, parse
from gateway.registry import groups, policies
from gateway.registry.members import read_object
from gateway.registry.settings import read_group


class PolicyIn(BaseModel):
    """A list of rules, as in a declarative file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rules: list[dict[str, Any]] = Field(max_length=1000)


class SaveIn(PolicyIn):
    """Rules to save as the next version, and whether they come into force with it."""

    activate: bool = True


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
    shadow: bool
    shadow_since: datetime | None


class PolicyList(BaseModel):
    """Versions, newest first."""

    items: list[PolicyOut]


class SimulateIn(BaseModel):
    """Rules, or the number of a version, to try on past calls: the last so many, or since when."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rules: list[dict[str, Any]] | None = Field(None, max_length=1000)
    number: int | None = None
    last: int = Field(1000, ge=1, le=simulation.LAST_AT_MOST)
    since: Annotated[AwareDatetime, Field(strict=False)] | None = None
    after: str | None = Field(None, max_length=200)
    limit: int = Field(50, ge=1, le=200)


class ComparisonOut(BaseModel):
    """What one version says otherwise than another; `lines` is the same for people."""

    model_config = ConfigDict(from_attributes=True)
    added: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    changed: list[ChangedRule]
    lines: list[str]


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
async def save_policy(house: House, who: Writer, body: SaveIn) -> Any:
    """Save these rules as the next version and, unless told otherwise, put it into force."""
    policy = parse(body.rules, "rules")
    entry = await policies.save(
        house.ledger, policy, actor=who.actor, now=house.clock(), activate=body.activate
    )
    await house.directory.refresh()
    return entry


@router.get("/policies/compare", response_model=ComparisonOut)
async def compare_policies(
    house: House,
    _who: Reader,
    before: Annotated[int, Query(alias="from")],
    after: Annotated[int, Query(alias="to")],
) -> Any:
    """What the version `to` says otherwise than the version `from`."""
    return await policies.differences(house.db, before, after)


@router.get("/policies/active", response_model=PolicyOut)
async def read_active_policy(house: House, _who: Reader) -> Any:
    """The version in force; 404 while there is none, and then every call is held."""
    entry = await policies.read_active(house.db)
    if entry is None:
        raise NotFound("No policy is in force: every call is held.", code="policy_unknown")
    return entry


@router.post("/policies/simulate", response_model=simulation.Outcome)
async def simulate_policy(house: House, _who: Reader, body: SimulateIn) -> Any:
    """What these rules would have done with past calls; those that change, newest first."""
    if (body.rules is None) == (body.number is None):
        raise Refused("Give either 'rules' or the 'number' of a version.", param="rules")
    if body.number is not None:
        policy = parse((await policies.read(house.db, body.number)).rules)
    else:
        policy = parse(body.rules or [], "rules")
    span = simulation.Span(body.last, body.since, body.after, body.limit)
    return await simulation.simulate(house.approvals, policy, span)


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


@router.post("/policies/{number}/shadow", response_model=PolicyOut)
async def begin_shadow(house: House, who: Writer, number: int) -> Any:
    """Record from now on what a version would say; it decides nothing. Ends another shadow."""
    entry = await policies.begin_shadow(house.ledger, number, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return entry


@router.delete("/policies/{number}/shadow", response_model=PolicyOut)
async def end_shadow(house: House, who: Writer, number: int) -> Any:
    """Record it no more; 404 when that version is not in shadow."""
    entry = await policies.end_shadow(house.ledger, number, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return entry


@router.get("/policies/{number}/shadow", response_model=shadows.Summary)
async def read_shadow(
    house: House,
    _who: Reader,
    number: int,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Any:
    """What the version has said in shadow: counts, and where it differs, newest first."""
    entry = await policies.read(house.db, number)
    return await shadows.summary(house.db, entry.digest, after=after, limit=limit)


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
