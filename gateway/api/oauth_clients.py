"""OAuth clients as JSON: who asks which token server for tokens, and their write-only secrets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.api.access import House, may
from gateway.identity.login import Principal
from gateway.identity.roles import Permission
from gateway.registry import oauth_clients
from gateway.registry.changes import By
from gateway.registry.members import read_object
from gateway.registry.settings import read_oauth_client
from gateway.store.oauth import OAuthClient


class SecretFrom(BaseModel):
    """Where the client's secret lives: a reference such as env:CRM_SECRET."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    source: str = Field(alias="from", max_length=500)


class ClientChange(BaseModel):
    """Everything configured of an OAuth client but its name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    grant: Literal["client_credentials", "token_exchange", "on_behalf_of"]
    client_id: str = Field(max_length=500)
    token_url: str | None = Field(None, max_length=2048)
    issuer: str | None = Field(None, max_length=2048)
    tenant: str | None = Field(None, max_length=128)
    authority: str | None = Field(None, max_length=2048)
    client_secret: SecretFrom | None = None
    assertion: Literal["workload_identity"] | None = None
    client_auth: Literal["basic", "post"] = "basic"
    scope: str | None = Field(None, max_length=500)
    audience: str | None = Field(None, max_length=500)
    resource: str | None = Field(None, max_length=500)
    allow_private_network: bool = False


class ClientIn(ClientChange):
    """An OAuth client to register."""

    name: str = Field(max_length=80)


class ClientSecretIn(BaseModel):
    """The client's secret for the sealed vault; it can be replaced, never read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    value: SecretStr = Field(min_length=1, max_length=16384)


class ClientSecretOut(BaseModel):
    """Where the secret is now; not the secret."""

    reference: str


class ClientOut(ClientIn):
    """A registered OAuth client. `for_user`: its tokens stand for the app's end user."""

    for_user: bool


class ClientList(BaseModel):
    """Every registered OAuth client, by name."""

    items: list[ClientOut]


router = APIRouter(tags=["oauth clients"])
Reader = Annotated[Principal, Depends(may(Permission.READ_SERVERS))]
#: Who gets tokens, and from where, is a matter of credentials.
Writer = Annotated[Principal, Depends(may(Permission.WRITE_CREDENTIALS))]


@router.get("/oauth-clients", response_model=ClientList)
async def list_clients(house: House, _who: Reader) -> Any:
    """Every registered OAuth client, by name."""
    return {"items": [_out(client) for client in await oauth_clients.listing(house.db)]}


@router.post("/oauth-clients", status_code=201, response_model=ClientOut)
async def create_client(house: House, who: Writer, body: ClientIn) -> Any:
    """Register an OAuth client; servers refer to it as oauth:NAME."""
    settings = _settings(body.name, body)
    await oauth_clients.register(house.ledger, settings, By(who.actor, house.clock()))
    await house.directory.refresh()
    return _out(settings)


@router.get("/oauth-clients/{name}", response_model=ClientOut)
async def read_client(house: House, _who: Reader, name: str) -> Any:
    """One OAuth client."""
    return _out(await oauth_clients.read(house.db, name))


@router.put("/oauth-clients/{name}", response_model=ClientOut)
async def change_client(house: House, who: Writer, name: str, body: ClientChange) -> Any:
    """Its settings, all of them. Another token server destroys its sealed secret."""
    settings = _settings(name, body)
    await oauth_clients.change(house.ledger, settings, By(who.actor, house.clock()))
    await house.directory.refresh()
    return _out(settings)


@router.delete("/oauth-clients/{name}", status_code=204)
async def remove_client(house: House, who: Writer, name: str) -> None:
    """Remove an OAuth client; 409 while the credential of a server refers to it."""
    await oauth_clients.remove(house.ledger, name, By(who.actor, house.clock()))
    await house.directory.refresh()


@router.put("/oauth-clients/{name}/secret", response_model=ClientSecretOut)
async def set_secret(house: House, who: Writer, name: str, body: ClientSecretIn) -> Any:
    """Store the client's secret in the sealed vault, bound to it and to its token server."""
    value = body.value.get_secret_value()
    by = By(who.actor, house.clock())
    reference = await oauth_clients.set_secret(house.ledger, house.envelope, name, value, by)
    await house.directory.refresh()
    return {"reference": reference}


def _settings(name: str, body: ClientChange) -> OAuthClient:
    given = body.model_dump(by_alias=True, exclude_none=True, exclude={"name"})
    return read_object({"name": name, **given}, "oauth_client", read_oauth_client)


def _out(client: OAuthClient) -> ClientOut:
    members = client.row()
    source = members.pop("client_secret", None)
    secret = None if source is None else SecretFrom(**{"from": source})
    return ClientOut(**members, client_secret=secret, for_user=client.for_user)
