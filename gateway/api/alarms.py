"""Alarms and pauses as JSON: what people must look at, and what stops releases at once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import House, may
from gateway.approvals import alarms
from gateway.approvals.alarms import AlarmView, Closing
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import pauses
from gateway.registry.pauses import Pausing

_OVER = "True lists those that are over."


class AlarmOut(BaseModel):
    """Something that people must look at, until somebody closes it."""

    id: str
    kind: str
    code: str
    app: str
    exchange_id: str | None
    approval_id: str | None
    server: str | None
    tool: str | None
    raised_at: datetime
    due_at: datetime | None
    closed_at: datetime | None
    closed_by: str | None


class AlarmList(BaseModel):
    """Alarms, the newest first."""

    items: list[AlarmOut]


class NoteIn(BaseModel):
    """What somebody found out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    note: str = Field(min_length=1, max_length=2000)


class PauseOut(BaseModel):
    """Nothing that it covers is released while it is in force."""

    id: str
    scope: Literal["all", "app", "server"]
    target: str = Field(description="The app's name or the server's label; empty for all.")
    reason: str
    begun_at: datetime
    begun_by: str
    ended_at: datetime | None
    ended_by: str | None


class PauseList(BaseModel):
    """Pauses, the newest first."""

    items: list[PauseOut]


class PauseIn(BaseModel):
    """What to pause, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scope: Literal["all", "app", "server"]
    target: str = Field("", max_length=200)
    reason: str = Field(min_length=1, max_length=500)


router = APIRouter(tags=["alarms and pauses"])
Reader = Annotated[Principal, Depends(may(Permission.READ_REQUESTS))]
Closer = Annotated[Principal, Depends(may(Permission.CLOSE_ALARMS))]
Beginner = Annotated[Principal, Depends(may(Permission.BEGIN_PAUSES))]
Ender = Annotated[Principal, Depends(may(Permission.END_PAUSES))]


@router.get("/alarms", response_model=AlarmList)
async def list_alarms(house: House, _who: Reader, closed: bool = False) -> Any:
    """Alarms that are open, or closed ones."""
    found = await alarms.listing(house.db, closed=closed)
    return {"items": [_alarm(view) for view in found]}


@router.post("/alarms/{alarm_id}/close", response_model=AlarmOut)
async def close_alarm(house: House, who: Closer, alarm_id: str, body: NoteIn) -> Any:
    """Say what you found out; whoever caused an alarm cannot close it."""
    closing = Closing(who.actor, who.email, body.note)
    return _alarm(await alarms.close(house.approvals, alarm_id, closing, now=house.clock()))


@router.get("/pauses", response_model=PauseList)
async def list_pauses(house: House, _who: Reader, ended: bool = False) -> Any:
    """Pauses in force, or those that are over."""
    return {"items": await pauses.listing(house.db, ended=ended)}


@router.post("/pauses", status_code=201, response_model=PauseOut)
async def begin_pause(house: House, who: Beginner, body: PauseIn) -> Any:
    """Begin a pause: once this answers, nothing that it covers is released."""
    wanted = Pausing(body.scope, body.target, body.reason, who.email)
    return await pauses.begin(house.ledger, wanted, actor=who.actor, now=house.clock())


@router.post("/pauses/{pause_id}/end", status_code=204)
async def end_pause(house: House, who: Ender, pause_id: str) -> None:
    """End a pause: what waited for it goes on."""
    await pauses.end(house.ledger, pause_id, who.email, actor=who.actor, now=house.clock())


def _alarm(view: AlarmView) -> dict[str, Any]:
    about = view.about
    return {
        "id": view.id,
        "kind": about.kind,
        "code": about.code,
        "app": about.app_name,
        "exchange_id": about.exchange_id,
        "approval_id": about.approval_id,
        "server": about.server_label,
        "tool": about.tool,
        "raised_at": view.raised_at,
        "due_at": view.due_at,
        "closed_at": view.closed_at,
        "closed_by": view.closed_by,
    }
