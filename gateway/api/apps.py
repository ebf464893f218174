"""Apps and their keys as JSON. A key is in the answer that made it and nowhere else."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import House, may
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import apps
from gateway.registry.apps import AppEntry
from gateway.registry.members import read_object
from gateway.registry.settings import AppSettings, read_app


class Identity(BaseModel):
    """Whose access tokens stand for the app, instead of a key."""

    model_config = ConfigDict(extra="forbid", strict=True)
    issuer: str = Field(max_length=2048)
    audience: str = Field(max_length=2048)
    subject: str | None = Field(None, max_length=2048, description="sub, azp or appid of tokens.")


class AppChange(BaseModel):
    """Everything configured of an app but its name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    owner: str | None = Field(None, max_length=320)
    wait: Literal["hold", "return"] = "hold"
    plain: Literal["patient", "strict"] = "patient"
    heartbeat: Literal["auto", "comments"] = "auto"
    servers: list[str] | None = Field(None, max_length=1000, description="null: every server.")
    identity: Identity | None = Field(None, description="null: keys alone.")


class AppIn(AppChange):
    """An app to register."""

    name: str = Field(max_length=80)


class KeyOut(BaseModel):
    """What is known of a key; not the key."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    created_at: datetime
    revoked_at: datetime | None


class AppOut(BaseModel):
    """An app with its keys, oldest first."""

    id: str
    name: str
    owner: str | None
    wait: str
    plain: str
    heartbeat: str
    servers: list[str] | None
    identity: Identity | None
    created_at: datetime
    disabled_at: datetime | None
    keys: list[KeyOut]


class AppList(BaseModel):
    """Every app, by name."""

    items: list[AppOut]


class NewKeyOut(BaseModel):
    """A key, shown this once."""

    id: str
    key: str


class NewAppOut(AppOut):
    """An app with its first key, shown this once."""

    key: str


router = APIRouter(tags=["apps"])
Reader = Annotated[Principal, Depends(may(Permission.READ_APPS))]
Writer = Annotated[Principal, Depends(may(Permission.WRITE_APPS))]


@router.get("/apps", response_model=AppList)
async def list_apps(house: House, _who: Reader) -> Any:
    """Every app, by name."""
    return {"items": [_out(entry) for entry in await apps.listing(house.db)]}


@router.post("/apps", status_code=201, response_model=NewAppOut)
async def create_app(house: House, who: Writer, body: AppIn) -> Any:
    """Register an app; the answer holds its key, this once."""
    settings = _settings(body.name, body)
    entry, key = await apps.create(house.ledger, settings, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return NewAppOut(**_out(entry).model_dump(), key=key.text)


@router.get("/apps/{name}", response_model=AppOut)
async def read_app_(house: House, _who: Reader, name: str) -> Any:
    """One app."""
    return _out(await apps.read(house.db, name))


@router.put("/apps/{name}", response_model=AppOut)
async def change_app(house: House, who: Writer, name: str, body: AppChange) -> Any:
    """Give an app these settings."""
    settings = _settings(name, body)
    entry = await apps.change(house.ledger, settings, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return _out(entry)


@router.post("/apps/{name}/disable", status_code=204)
async def disable_app(house: House, who: Writer, name: str) -> None:
    """Shut an app out, at once; its keys count no more."""
    await apps.disable(house.ledger, name, actor=who.actor, now=house.clock())
    await house.directory.refresh()


@router.post("/apps/{name}/enable", status_code=204)
async def enable_app(house: House, who: Writer, name: str) -> None:
    """Let a disabled app in again."""
    await apps.enable(house.ledger, name, actor=who.actor, now=house.clock())
    await house.directory.refresh()


@router.post("/apps/{name}/keys", status_code=201, response_model=NewKeyOut)
async def create_key(house: House, who: Writer, name: str) -> Any:
    """Make another key, shown this once; the ones before stay valid until revoked."""
    key = await apps.create_key(house.ledger, name, actor=who.actor, now=house.clock())
    await house.directory.refresh()
    return NewKeyOut(id=key.id, key=key.text)


@router.delete("/apps/{name}/keys/{key_id}", status_code=204)
async def revoke_key(house: House, who: Writer, name: str, key_id: str) -> None:
    """Revoke one key, at once."""
    await apps.revoke_key(house.ledger, name, key_id, actor=who.actor, now=house.clock())
    await house.directory.refresh()


def _settings(name: str, body: AppChange) -> AppSettings:
    given = body.model_dump(exclude_none=True, exclude={"name"})
    return read_object({"name": name, **given}, "app", read_app)


def _out(entry: AppEntry) -> AppOut:
    settings = entry.settings
    return AppOut(
        id=entry.id,
        name=settings.name,
        owner=settings.owner,
        wait=settings.wait,
        plain=settings.plain,
        heartbeat=settings.heartbeat,
        servers=None if settings.servers is None else list(settings.servers),
        identity=None if settings.identity is None else Identity(**settings.identity.row()),
        created_at=entry.created_at,
        disabled_at=entry.disabled_at,
        keys=[KeyOut.model_validate(key) for key in entry.keys],
    )
