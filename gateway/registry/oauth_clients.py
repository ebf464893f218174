"""OAuth clients: register, change, remove, read, and store a secret that nobody reads back.

Who gets tokens, and from where, is a matter of credentials. A sealed secret belongs to one client
at one token server: when the server changes, it is destroyed and must be stored again.
"""

from __future__ import annotations

from dataclasses import replace

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import JSONValue
from gateway.errors import Conflict, NotFound
from gateway.registry.changes import By, Change, changing, differences, digest_of, names
from gateway.store.database import Database
from gateway.store.envelope import Envelope
from gateway.store.oauth import OAuthClient
from gateway.store.references import SecretRef
from gateway.store.tables import OAuthClientRow, Server
from gateway.vault import sealed


async def register(ledger: Ledger, settings: OAuthClient, by: By) -> OAuthClient:
    """Register a client; `Conflict` when its name is taken."""
    async with changing(ledger, by.actor, by.now) as change:
        if await find(change.session, settings.name) is not None:
            raise Conflict(
                f"An OAuth client with the name {settings.name!r} is registered already.",
                code="oauth_client_exists",
                param="name",
            )
        await put(change, None, settings)
    return settings


async def change(ledger: Ledger, settings: OAuthClient, by: By) -> OAuthClient:
    """Give the client of that name these settings; without a difference nothing is recorded."""
    async with changing(ledger, by.actor, by.now) as changed:
        await put(changed, await _known(changed.session, settings.name), settings)
    return settings


async def remove(ledger: Ledger, name: str, by: By) -> None:
    """Remove a client and destroy its sealed secret; `Conflict` while a server refers to it."""
    async with changing(ledger, by.actor, by.now) as changed:
        row = await _known(changed.session, name)
        if labels := await _users(changed.session, name):
            raise Conflict(
                f"The credential of {', '.join(labels)} is oauth:{name}; change it first.",
                code="oauth_client_in_use",
            )
        before = settings_of(row)
        await _destroy(changed.session, before)
        await changed.session.delete(row)
        fields: dict[str, JSONValue] = {"before": digest_of(before)}
        changed.record("oauth_client.removed", {"oauth_client": name}, fields)


async def set_secret(ledger: Ledger, envelope: Envelope, name: str, value: str, by: By) -> str:
    """Store the client's secret in the sealed vault; the reference, as text.

    Raises `Refused` for a value that cannot travel in a header, without repeating any of it.
    """
    async with changing(ledger, by.actor, by.now) as changed:
        row = await _known(changed.session, name)
        before = settings_of(row)
        after = replace(before, client_secret=_sealed_name(before), assertion=None)
        await put(changed, row, after)
        ref = _secret_of(after)
        version = await sealed.write(changed.session, envelope, ref, value, by.now)
        fields: dict[str, JSONValue] = {"reference": str(ref), "number": version, "name": name}
        changed.record("credential.written", {"oauth_client": name}, fields)
    return str(ref)


async def listing(db: Database) -> list[OAuthClient]:
    """Every registered client, by name."""
    async with db.reading() as session:
        return await every(session)


async def read(db: Database, name: str) -> OAuthClient:
    """One client; `NotFound` when there is none of that name."""
    async with db.reading() as session:
        return settings_of(await _known(session, name))


async def every(session: AsyncSession) -> list[OAuthClient]:
    """Every registered client, by name, in the caller's transaction."""
    rows = await session.exec(select(OAuthClientRow).order_by(col(OAuthClientRow.name)))
    return [settings_of(row) for row in rows]


async def find(session: AsyncSession, name: str) -> OAuthClientRow | None:
    """The row of a name."""
    return await session.get(OAuthClientRow, name)


async def put(change: Change, row: OAuthClientRow | None, settings: OAuthClient) -> None:
    """Make the row say what `settings` say, with its record, in the caller's transaction."""
    before = None if row is None else settings_of(row)
    found = differences(before, settings)
    if not found:
        return
    fields: dict[str, JSONValue] = {
        "definition": digest_of(settings),
        "url": settings.where[:512],
    }
    kind = "oauth_client.registered"
    if before is not None:
        kind = "oauth_client.changed"
        fields |= {"changes": names(found), "before": digest_of(before)}
        if before.secret_ref() != settings.secret_ref():
            await _destroy(change.session, before)
    if row is None:
        row = OAuthClientRow(
            name=settings.name, settings={}, created_at=change.now, changed_at=change.now
        )
    row.settings, row.changed_at = settings.row(), change.now
    change.session.add(row)
    await change.session.flush()
    change.record(kind, {"oauth_client": settings.name}, fields)


def settings_of(row: OAuthClientRow) -> OAuthClient:
    """What a person configured of a stored client."""
    return OAuthClient(**row.settings)


async def _destroy(session: AsyncSession, settings: OAuthClient) -> None:
    """Destroy a sealed secret that must not or need not be sent any more."""
    ref = settings.secret_ref()
    if ref is not None and ref.store == "sealed":
        await sealed.destroy(session, ref)


def _sealed_name(before: OAuthClient) -> str:
    known = before.client_secret or ""
    return known if known.startswith("sealed:") else f"sealed:{before.name}"


def _secret_of(client: OAuthClient) -> SecretRef:
    ref = client.secret_ref()
    if ref is None:
        raise Conflict(f"The OAuth client {client.name!r} has no secret.")
    return ref


async def _users(session: AsyncSession, name: str) -> list[str]:
    """Labels of the servers that are called with its tokens."""
    rows = await session.exec(select(Server).where(col(Server.removed_at).is_(None)))
    wanted = f"oauth:{name}"
    return sorted(row.label for row in rows if (row.credential or {}).get("from") == wanted)


async def _known(session: AsyncSession, name: str) -> OAuthClientRow:
    row = await find(session, name)
    if row is None:
        raise NotFound(f"No OAuth client has the name {name!r}.", code="oauth_client_unknown")
    return row
