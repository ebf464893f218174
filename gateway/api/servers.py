"""Registered MCP servers as JSON: their settings, their tools, their write-only credential."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.api.access import House, may, refusal
from gateway.errors import NotAllowed
from gateway.identity.login import Principal
from gateway.identity.roles import Permission, allowed
from gateway.probing.report import Report
from gateway.registry import accepting, bindings, servers, tools, unknown
from gateway.registry.bindings import Seen
from gateway.registry.changes import By
from gateway.registry.members import read_object
from gateway.registry.servers import ServerEntry
from gateway.registry.settings import ServerSettings, read_server
from gateway.services import Services


class CredentialRef(BaseModel):
    """Which header carries the secret at `from`, a reference such as env:CRM_TOKEN."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    header: str = Field("Authorization", max_length=80)
    scheme: str | None = Field(None, max_length=40)
    source: str = Field(alias="from", max_length=500)


class ServerChange(BaseModel):
    """Everything configured of a server but its label."""

    model_config = ConfigDict(extra="forbid", strict=True)
    url: str = Field(max_length=2048)
    description: str | None = Field(None, max_length=2048)
    allow_private_network: bool = False
    inject: Literal["headers", "authorization"] = "headers"
    credential: CredentialRef | None = None
    pin: Literal["on_first_use", "accept"] = Field(
        "on_first_use", description="Who pins the first list of tools: its first use, or a person."
    )


class ServerIn(ServerChange):
    """A server to register."""

    label: str = Field(max_length=64)


class CredentialIn(BaseModel):
    """A value for the sealed vault; it can be replaced, never read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    value: SecretStr = Field(min_length=1, max_length=16384)
    header: str | None = Field(None, max_length=80)
    scheme: str | None = Field(None, max_length=40)


class CredentialOut(BaseModel):
    """Where the value is now; not the value."""

    reference: str


class BindingOut(BaseModel):
    """To which origin a credential may be sent, and who said so. `how`: session, token, host, file
    or migration.
    """

    model_config = ConfigDict(from_attributes=True)
    origin: str
    by: str
    how: str
    at: datetime


class BindingIn(BaseModel):
    """What was seen: the confirmation counts for exactly this reference and origin."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reference: str = Field(max_length=500)
    origin: str = Field(max_length=2048)


class UseOut(BaseModel):
    """A server that names a reference. Without `bound`, it is not sent the secret behind it."""

    model_config = ConfigDict(from_attributes=True)
    reference: str
    server: str
    origin: str
    bound: BindingOut | None


class UseList(BaseModel):
    """Which servers use which reference, by reference and label."""

    items: list[UseOut]


class ServerOut(BaseModel):
    """A registered server. `stored_at`: when the value of a sealed credential was stored;
    `binding`: to which origin the credential may be sent, null while it may not be sent at all.
    """

    id: str
    label: str
    url: str
    description: str | None
    allow_private_network: bool
    inject: str
    credential: CredentialRef | None
    pin: str
    stored_at: datetime | None
    binding: BindingOut | None
    tools: int
    changed_tools: int
    created_at: datetime
    changed_at: datetime


class ServerList(BaseModel):
    """Every registered server, by label."""

    items: list[ServerOut]


class SignOut(BaseModel):
    """What stands out in the texts of a tool; it rules on nothing."""

    model_config = ConfigDict(from_attributes=True)
    code: str
    sentence: str


class ToolOut(BaseModel):
    """A tool's definition as pinned and as last listed; nothing is pinned of a new one.

    `state`: pinned, or why its calls are held: changed | new | gone, or denied: refused.
    `source`: who saw the listing, Azure in a stream or the gateway in a probe.
    """

    model_config = ConfigDict(from_attributes=True)
    name: str
    state: Literal["pinned", "changed", "new", "gone", "refused"]
    changed: bool
    pinned_digest: str | None
    pinned: dict[str, Any] | None
    pinned_at: datetime | None
    pinned_by: str | None
    listed_digest: str
    listed: dict[str, Any]
    listed_at: datetime
    source: str | None
    signs: list[SignOut]
    gone_at: datetime | None
    refused_at: datetime | None
    refused_by: str | None


class ChangeOut(BaseModel):
    """One place in which two definitions differ. `path` is a JSON pointer."""

    model_config = ConfigDict(from_attributes=True)
    path: str
    kind: Literal["added", "removed", "changed"]
    before: Any
    after: Any


class ToolDetail(ToolOut):
    """A tool, and where its listed definition differs from the pinned one."""

    difference: list[ChangeOut]


class ToolList(BaseModel):
    """The known tools of a server, those that wait for a person first."""

    items: list[ToolOut]


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class AcceptIn(BaseModel):
    """The definition that was read: what is said of it counts for exactly that one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    digest: Digest


class AcceptAllIn(BaseModel):
    """The definitions that were read, as digest by tool."""

    model_config = ConfigDict(extra="forbid", strict=True)
    digests: dict[str, Digest] = Field(min_length=1, max_length=tools.MAX_TOOLS)


class UnknownOut(BaseModel):
    """A server that an app asked for and nobody has registered; every attempt was refused."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    app: str
    address: str
    first_seen: datetime
    last_seen: datetime
    times: int


class UnknownList(BaseModel):
    """Servers that are not registered, the newest attempt first."""

    items: list[UnknownOut]


class ProbeIn(BaseModel):
    """An address to visit before it is registered."""

    model_config = ConfigDict(extra="forbid", strict=True)
    url: str = Field(max_length=2048)
    allow_private_network: bool = False


router = APIRouter(tags=["servers"])
Reader = Annotated[Principal, Depends(may(Permission.READ_SERVERS))]
Writer = Annotated[Principal, Depends(may(Permission.WRITE_SERVERS))]
Keeper = Annotated[Principal, Depends(may(Permission.WRITE_CREDENTIALS))]


@router.get("/servers", response_model=ServerList)
async def list_servers(house: House, _who: Reader) -> Any:
    """Every registered server, by label."""
    return {"items": [_out(entry) for entry in await servers.listing(house.db)]}


@router.post("/servers", status_code=201, response_model=ServerOut)
async def register_server(house: House, who: Writer, body: ServerIn) -> Any:
    """Register a server. Calls to servers that are not registered are refused."""
    settings = _settings(body.label, body)
    async with _binding(house, who, "POST") as binds:
        entry = await servers.register(
            house.ledger, settings, actor=who.actor, now=house.clock(), binds=binds
        )
    await house.directory.refresh()
    return _out(entry)


@router.get("/servers/unknown", response_model=UnknownList)
async def list_unknown_servers(house: House, _who: Reader) -> Any:
    """Servers that apps asked for and nobody has registered: refused, and noted."""
    return {"items": await unknown.listing(house.db)}


@router.delete("/servers/unknown/{entry}", status_code=204)
async def forget_unknown_server(house: House, who: Writer, entry: str) -> None:
    """Take one off the list; it comes back when an app asks for it again."""
    await unknown.forget(house.ledger, entry, actor=who.actor, now=house.clock())


@router.get("/servers/{label}", response_model=ServerOut)
async def read_server_(house: House, _who: Reader, label: str) -> Any:
    """One server."""
    return _out(await servers.read(house.db, label))


@router.put("/servers/{label}", response_model=ServerOut)
async def change_server(house: House, who: Writer, label: str, body: ServerChange) -> Any:
    """Give a server these settings. Another address destroys its sealed credential; at another
    origin, no credential is sent until it is bound anew.
    """
    settings = _settings(label, body)
    async with _binding(house, who, "PUT") as binds:
        entry = await servers.change(
            house.ledger, settings, actor=who.actor, now=house.clock(), binds=binds
        )
    await house.directory.refresh()
    return _out(entry)


@router.delete("/servers/{label}", status_code=204)
async def remove_server(house: House, who: Writer, label: str) -> None:
    """Remove a server and destroy its sealed credential; calls to it are refused from now on."""
    await servers.remove(house.ledger, label, actor=who.actor, now=house.clock())
    await house.directory.refresh()


@router.put("/servers/{label}/credential", response_model=CredentialOut)
async def set_credential(house: House, who: Keeper, label: str, body: CredentialIn) -> Any:
    """Store a value in the sealed vault and bind it to this server at its address."""
    given = servers.CredentialValue(body.value.get_secret_value(), body.header, body.scheme)
    reference = await servers.set_credential(
        house.ledger, house.envelope, label, given, By(who.actor, house.clock())
    )
    await house.directory.refresh()
    return {"reference": reference}


@router.post("/servers/{label}/binding", response_model=ServerOut)
async def bind_credential(house: House, who: Keeper, label: str, body: BindingIn) -> Any:
    """Confirm that the credential may be sent to the origin at which the server is now; 409 when
    it has another credential or origin than was seen.
    """
    seen = Seen(body.reference, body.origin)
    entry = await servers.bind(house.ledger, label, seen, By(who.actor, house.clock()))
    await house.directory.refresh()
    return _out(entry)


@router.get("/credentials", response_model=UseList)
async def list_credentials(house: House, _who: Reader) -> Any:
    """Which servers use which reference, and to which origin each may be sent; no values."""
    return {"items": await bindings.uses(house.db)}


@router.get("/servers/{label}/tools", response_model=ToolList)
async def list_tools(house: House, _who: Reader, label: str) -> Any:
    """The tools of a server: the definition that is pinned, and what the server listed last."""
    return {"items": await tools.listing(house.db, label)}


@router.post("/servers/{label}/tools/accept", status_code=204)
async def accept_tools(house: House, who: Writer, label: str, body: AcceptAllIn) -> None:
    """Pin these definitions, all or none; 409 when another one has been listed of any of them."""
    seen, now = body.digests, house.clock()
    await accepting.accept_all(house.ledger, label, seen, actor=who.actor, now=now)


@router.post("/servers/{label}/tools/{tool:path}/accept", status_code=204)
async def accept_tool(house: House, who: Writer, label: str, tool: str, body: AcceptIn) -> None:
    """Pin the definition of this digest; 409 when the server has listed another one since."""
    seen = (tool, body.digest)
    await accepting.accept(house.ledger, label, seen, actor=who.actor, now=house.clock())


@router.post("/servers/{label}/tools/{tool:path}/refuse", status_code=204)
async def refuse_tool(house: House, who: Writer, label: str, tool: str, body: AcceptIn) -> None:
    """Deny every call of the tool until somebody accepts it; 409 as for accepting."""
    seen = (tool, body.digest)
    await accepting.refuse(house.ledger, label, seen, actor=who.actor, now=house.clock())


@router.get("/servers/{label}/tools/{tool:path}", response_model=ToolDetail)
async def read_tool(house: House, _who: Reader, label: str, tool: str) -> Any:
    """One tool: what is pinned, what was listed last, and where the two differ."""
    return await tools.read(house.db, label, tool)


@router.post("/servers/probe", response_model=Report)
async def probe_address(house: House, who: Writer, body: ProbeIn) -> Any:
    """Visit an address that need not be registered, without a credential, and list its tools."""
    return await house.prober.address(
        body.url, who.actor, allow_private_network=body.allow_private_network
    )


@router.post("/servers/{label}/probe", response_model=Report)
async def probe_server(house: House, who: Writer, label: str) -> Any:
    """Visit the server with its credential, as Azure would, and without; pin what it lists."""
    return await house.prober.server(label, who.actor)


@contextlib.asynccontextmanager
async def _binding(house: Services, who: Principal, method: str) -> AsyncIterator[str | None]:
    """How this person binds credentials, None for one who may not; their attempt is recorded."""
    right = Permission.WRITE_CREDENTIALS
    try:
        yield bindings.how(who.actor) if allowed(who.roles, right) else None
    except NotAllowed:
        raise await refusal(house, who, right, method) from None


def _settings(label: str, body: ServerChange) -> ServerSettings:
    given = body.model_dump(by_alias=True, exclude_none=True, exclude={"label", "pin"})
    given["tools"] = {"pin": body.pin}
    return read_object({"label": label, **given}, "server", read_server)


def _out(entry: ServerEntry) -> ServerOut:
    settings, kept = entry.settings, entry.settings.credential
    return ServerOut(
        id=entry.id,
        label=settings.label,
        url=settings.url,
        description=settings.description,
        allow_private_network=settings.allow_private_network,
        inject=settings.inject,
        credential=CredentialRef(**{**kept.row(), "from": kept.source}) if kept else None,
        pin=settings.pin,
        stored_at=entry.stored_at,
        binding=BindingOut.model_validate(entry.binding) if entry.binding else None,
        tools=entry.tools,
        changed_tools=entry.changed_tools,
        created_at=entry.created_at,
        changed_at=entry.changed_at,
    )
