"""MCP servers: register, change, remove, read, and store a credential that nobody reads back.

A credential belongs to one server at one origin, as somebody has said who may set credentials
(`gateway.registry.bindings`). `binds` says how the actor may: as records name it, or None for one
who may not. When the address changes, a sealed value is destroyed and must be stored again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue
from gateway.errors import Conflict, NotAllowed, NotFound
from gateway.registry import bindings, ending
from gateway.registry.bindings import Binding, Seen
from gateway.registry.changes import By, Change, changing, differences, digest_of, names
from gateway.registry.settings import CredentialSettings, ServerSettings, check_server
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.ids import new_id
from gateway.store.references import SecretRef, origin_of
from gateway.store.tables import Grant, SealedSecret, Server, ToolDefinition
from gateway.vault import sealed


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """A registered server as people see it.

    `stored_at` is when the value of a sealed credential was stored, None when there is none (or
    the credential lives elsewhere); `binding` is None while no credential may be sent to it;
    `tools` and `changed_tools` count known definitions.
    """

    id: str
    settings: ServerSettings
    created_at: datetime
    changed_at: datetime
    stored_at: datetime | None = None
    binding: Binding | None = None
    tools: int = 0
    changed_tools: int = 0


@dataclass(frozen=True, slots=True)
class CredentialValue:
    """A value to be stored, and how it travels; None keeps what is configured."""

    value: str = field(repr=False)
    header: str | None = None
    scheme: str | None = None


async def register(
    ledger: Ledger,
    settings: ServerSettings,
    *,
    actor: Actor,
    now: datetime,
    binds: str | None = None,
) -> ServerEntry:
    """Register a server; `Conflict` when its label or address is taken, `NotAllowed` when it has
    a credential and the actor may not bind one.
    """
    async with changing(ledger, actor, now) as change:
        if await find(change.session, settings.label) is not None:
            raise Conflict(
                f"A server with the label {settings.label!r} is registered already.",
                code="server_exists",
                param="label",
            )
        row = await put(change, None, settings, binds=binds)
        return (await _entries(change.session, [row]))[0]


async def change(
    ledger: Ledger,
    settings: ServerSettings,
    *,
    actor: Actor,
    now: datetime,
    binds: str | None = None,
) -> ServerEntry:
    """Give the server of that label these settings; without a difference nothing is recorded.

    Another credential binds it, for who may; another origin ends the binding for everybody, until
    `bind`. `NotAllowed` for another credential from an actor who may not bind one.
    """
    async with changing(ledger, actor, now) as changed:
        row = await _known(changed.session, settings.label)
        row = await put(changed, row, settings, binds=binds)
        return (await _entries(changed.session, [row]))[0]


async def bind(ledger: Ledger, label: str, seen: Seen | None, by: By) -> ServerEntry:
    """Confirm that the credential of a server may be sent to where the server is now.

    Raises `Conflict` when that is not what was `seen`; None takes it as it is.
    """
    async with changing(ledger, by.actor, by.now) as changed:
        row = await _known(changed.session, label)
        if row.credential is None:
            raise Conflict(f"The server {label!r} has no credential.", code="no_credential")
        seen = seen or Seen(row.credential["from"], origin_of(row.url))
        await bindings.confirm(changed, row, seen, bindings.how(by.actor))
        return (await _entries(changed.session, [row]))[0]


async def remove(ledger: Ledger, label: str, *, actor: Actor, now: datetime) -> None:
    """Remove a server and destroy its stored credential; calls to it are refused from now on."""
    async with changing(ledger, actor, now) as changed:
        row = await _known(changed.session, label)
        row.removed_at = row.changed_at = now
        changed.session.add(row)
        await _destroy_values(changed.session, row)
        await bindings.end(changed, row, bindings.REMOVED)
        await _end_grants(changed, row)
        fields: dict[str, JSONValue] = {"before": digest_of(settings_of(row))}
        changed.record("server.removed", {"server": label, "server_id": row.id}, fields)


async def set_credential(
    ledger: Ledger, envelope: Envelope, label: str, given: CredentialValue, by: By
) -> str:
    """Store a value in the sealed vault and bind it to the server; the reference, as text.

    Raises `Refused` for a value that cannot travel in a header, without repeating any of it, and
    for a header that cannot carry one.
    """
    async with changing(ledger, by.actor, by.now) as changed:
        row = await _known(changed.session, label)
        before = settings_of(row)
        after = replace(before, credential=_sealed_credential(before, given))
        check_server(after)  # a header that can carry it
        how = bindings.how(by.actor)
        row = await put(changed, row, after, binds=how)
        await bindings.bind(changed, row, how)
        ref = scoped(row)
        version = await sealed.write(changed.session, envelope, ref, given.value, by.now)
        fields: dict[str, JSONValue] = {
            "reference": str(ref),
            "number": version,
            "header": (row.credential or {}).get("header", ""),
        }
        changed.record("credential.written", {"server": label, "server_id": row.id}, fields)
    return str(ref)


async def listing(db: Database) -> list[ServerEntry]:
    """Every registered server, by label."""
    async with db.reading() as session:
        live = select(Server).where(col(Server.removed_at).is_(None)).order_by(col(Server.label))
        rows = list(await session.exec(live))
        return await _entries(session, rows)


async def read(db: Database, label: str) -> ServerEntry:
    """One server; `NotFound` when there is none of that label."""
    async with db.reading() as session:
        row = await _known(session, label)
        return (await _entries(session, [row]))[0]


async def find(session: AsyncSession, label: str) -> Server | None:
    """The live row of a label."""
    live = select(Server).where(col(Server.label) == label, col(Server.removed_at).is_(None))
    return (await session.exec(live)).first()


async def put(
    change: Change, row: Server | None, settings: ServerSettings, *, binds: str | None
) -> Server:
    """Make the row say what `settings` say, with its records, in the caller's transaction.

    Raises `NotAllowed` for another credential from an actor who may not bind one.
    """
    await _check_address_is_free(change.session, row, settings)
    before = None if row is None else settings_of(row)
    another = settings.credential is not None and (
        before is None or before.credential != settings.credential
    )
    if another and binds is None:
        raise NotAllowed(
            "A server's credential is set and changed by who may set credentials; leave it out, or "
            "as it is.",
            code="credential_not_allowed",
            param="credential",
        )
    row = await (_insert(change, settings) if row is None else _change(change, row, settings))
    await bindings.end(change, row)
    if another and binds is not None:
        await bindings.bind(change, row, binds)
    return row


async def _change(change: Change, row: Server, settings: ServerSettings) -> Server:
    before = settings_of(row)
    found = differences(before, settings)
    if not found:
        return row
    if before.url != settings.url:
        await _end_grants(change, row)
    if before.url != settings.url or before.credential != settings.credential:
        await _release_value(change.session, row, settings)
    _write(row, settings)
    row.changed_at = change.now
    change.session.add(row)
    await change.session.flush()
    fields: dict[str, JSONValue] = {
        "changes": names(found),
        "before": digest_of(before),
        "definition": digest_of(settings),
        "url": settings.url[:512],
    }
    change.record("server.changed", {"server": row.label, "server_id": row.id}, fields)
    return row


def settings_of(row: Server) -> ServerSettings:
    """What a person configured of a stored server."""
    given = row.credential
    credential = (
        None
        if given is None
        else CredentialSettings(given["header"], given.get("scheme"), given["from"])
    )
    return ServerSettings(
        label=row.label,
        url=row.url,
        description=row.description,
        allow_private_network=row.allow_private_network,
        inject=row.inject,
        credential=credential,
        pin=row.pin,
    )


def scoped(row: Server) -> SecretRef:
    """The reference of the server's credential, tied to its id and address."""
    return SecretRef.parse((row.credential or {})["from"]).to(row.id, row.url, None)


async def _insert(change: Change, settings: ServerSettings) -> Server:
    await _check_label(change.session, settings.label)
    await _free_label(change.session, settings.label)
    row = Server(
        id=new_id("srv", change.now),
        label=settings.label,
        url=settings.url,
        credential=None,
        created_at=change.now,
        changed_at=change.now,
        removed_at=None,
    )
    _write(row, settings)
    change.session.add(row)
    await change.session.flush()
    fields: dict[str, JSONValue] = {"definition": digest_of(settings), "url": settings.url[:512]}
    change.record("server.registered", {"server": row.label, "server_id": row.id}, fields)
    return row


def _write(row: Server, settings: ServerSettings) -> None:
    row.url = settings.url
    row.description = settings.description
    row.allow_private_network = settings.allow_private_network
    row.inject = settings.inject
    row.credential = settings.credential.row() if settings.credential else None
    row.pin = settings.pin


async def _check_label(session: AsyncSession, label: str) -> None:
    alike = select(Server.label).where(
        func.lower(col(Server.label)) == label.lower(), col(Server.removed_at).is_(None)
    )
    if (other := (await session.exec(alike)).first()) is not None:
        # People, and rules for people, would take one for the other.
        raise Conflict(
            f"The label {label!r} differs from that of {other!r} in letter case alone.",
            code="server_exists",
            param="label",
        )


async def _free_label(session: AsyncSession, label: str) -> None:
    # A removed server keeps its row for history; a new one of that label is another server.
    removed = select(Server).where(col(Server.label) == label, col(Server.removed_at).is_not(None))
    for row in await session.exec(removed):
        row.label = f"{label}~{row.id}"
        session.add(row)
    await session.flush()


async def _check_address_is_free(
    session: AsyncSession, row: Server | None, settings: ServerSettings
) -> None:
    taken = select(Server).where(
        col(Server.url) == settings.url,
        col(Server.removed_at).is_(None),
        col(Server.label) != settings.label,
    )
    other = (await session.exec(taken)).first()
    if other is not None and (row is None or row.url != settings.url):
        # One address under two labels would make it a guess whose credential and rules count.
        raise Conflict(
            f"The address of {settings.label!r} is registered as {other.label!r} already.",
            code="server_url_taken",
            param="url",
        )


async def _release_value(session: AsyncSession, row: Server, after: ServerSettings) -> None:
    """Destroy a sealed value that must not or need not be sent any more."""
    if row.credential is None or SecretRef.parse(row.credential["from"]).store != "sealed":
        return
    source = None if after.credential is None else after.credential.source
    if row.url != after.url or row.credential["from"] != source:
        await sealed.destroy(session, scoped(row))


async def _end_grants(change: Change, row: Server) -> None:
    mine: Any = col(Grant.server_id) == row.id
    await ending.end_grants(change.tx, mine, why=ending.SERVER, now=change.now)


async def _destroy_values(session: AsyncSession, row: Server) -> None:
    if row.credential is not None and SecretRef.parse(row.credential["from"]).store == "sealed":
        await sealed.destroy(session, scoped(row))


def _sealed_credential(before: ServerSettings, given: CredentialValue) -> CredentialSettings:
    known = before.credential or CredentialSettings("Authorization", "Bearer", "")
    source = known.source if known.source.startswith("sealed:") else f"sealed:{before.label}"
    header = given.header or known.header
    scheme = known.scheme if given.header is None else None
    return CredentialSettings(header, given.scheme or scheme, source)


async def _known(session: AsyncSession, label: str) -> Server:
    row = await find(session, label)
    if row is None:
        raise NotFound(f"No server has the label {label!r}.", code="server_unknown")
    return row


async def _entries(session: AsyncSession, rows: list[Server]) -> list[ServerEntry]:
    known, changed = await _tool_counts(session)
    stored = await _stored_at(session)
    bound = await bindings.fitting(session)
    return [
        replace(
            _entry(row),
            tools=known.get(row.id, 0),
            changed_tools=changed.get(row.id, 0),
            stored_at=stored.get(_value_name(row)),
            binding=bound.get(row.id),
        )
        for row in rows
    ]


def _value_name(row: Server) -> str:
    return "" if row.credential is None else scoped(row).stored_as


async def _tool_counts(session: AsyncSession) -> tuple[Mapping[str, int], Mapping[str, int]]:
    per_server = select(col(ToolDefinition.server_id), func.count()).group_by(
        col(ToolDefinition.server_id)
    )
    differ = col(ToolDefinition.pinned_digest) != col(ToolDefinition.listed_digest)
    known = dict((await session.exec(per_server)).all())
    changed = dict((await session.exec(per_server.where(differ))).all())
    return known, changed


async def _stored_at(session: AsyncSession) -> Mapping[str, datetime]:
    newest = select(col(SealedSecret.name), func.max(col(SealedSecret.created_at))).group_by(
        col(SealedSecret.name)
    )
    return dict((await session.exec(newest)).all())


def _entry(row: Server) -> ServerEntry:
    return ServerEntry(row.id, settings_of(row), row.created_at, row.changed_at)
