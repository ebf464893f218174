"""Apps and their keys. A key is shown once, when it is made; afterwards only its id is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue
from gateway.errors import Conflict, NotFound, Refused
from gateway.registry.changes import By, Change, changing, differences, digest_of, names
from gateway.registry.keys import NewKey, digest, new_key
from gateway.registry.settings import AppSettings, IdentitySettings
from gateway.store.database import Database
from gateway.store.ids import new_id
from gateway.store.tables import App, AppKey, Server


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key as people see it: its public id and its times."""

    id: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class AppEntry:
    """An app as people see it, with its keys, oldest first."""

    id: str
    settings: AppSettings
    created_at: datetime
    disabled_at: datetime | None
    keys: tuple[KeyEntry, ...] = ()


async def create(
    ledger: Ledger, settings: AppSettings, *, actor: Actor, now: datetime
) -> tuple[AppEntry, NewKey]:
    """Create an app with its first key, which is readable here and never again."""
    async with changing(ledger, actor, now) as change:
        if await find(change.session, settings.name) is not None:
            raise Conflict(
                f"An app with the name {settings.name!r} exists already.",
                code="app_exists",
                param="name",
            )
        row = await put(change, None, settings)
        key = await _add_key(change, row)
    return _entry(row, [KeyEntry(key.id, now, None)]), key


async def change(ledger: Ledger, settings: AppSettings, *, actor: Actor, now: datetime) -> AppEntry:
    """Give the app of that name these settings; without a difference nothing is recorded."""
    async with changing(ledger, actor, now) as changed:
        row = await put(changed, await _known(changed.session, settings.name), settings)
        return _entry(row, await _keys(changed.session, row))


async def disable(ledger: Ledger, name: str, *, actor: Actor, now: datetime) -> None:
    """Shut an app out: its keys count no more until it is enabled again."""
    await _switch(ledger, name, now, By(actor, now))


async def enable(ledger: Ledger, name: str, *, actor: Actor, now: datetime) -> None:
    """Let a disabled app in again."""
    await _switch(ledger, name, None, By(actor, now))


async def create_key(ledger: Ledger, name: str, *, actor: Actor, now: datetime) -> NewKey:
    """Give an app another key; the ones before stay valid until they are revoked."""
    async with changing(ledger, actor, now) as changed:
        return await _add_key(changed, await _known(changed.session, name))


async def revoke_key(
    ledger: Ledger, name: str, key_id: str, *, actor: Actor, now: datetime
) -> None:
    """Revoke one key of an app; revoking it again changes nothing."""
    async with changing(ledger, actor, now) as changed:
        app = await _known(changed.session, name)
        key = await changed.session.get(AppKey, key_id)
        if key is None or key.app_id != app.id:
            raise NotFound(f"The app {name!r} has no key {key_id!r}.", code="app_key_unknown")
        if key.revoked_at is not None:
            return
        key.revoked_at = now
        changed.session.add(key)
        changed.record("app_key.revoked", {"app": app.id}, {"key_id": key.id, "name": app.name})


async def listing(db: Database) -> list[AppEntry]:
    """Every app, by name."""
    async with db.reading() as session:
        rows = await session.exec(select(App).order_by(col(App.name)))
        return [_entry(row, await _keys(session, row)) for row in list(rows)]


async def read(db: Database, name: str) -> AppEntry:
    """One app; `NotFound` when there is none of that name."""
    async with db.reading() as session:
        row = await _known(session, name)
        return _entry(row, await _keys(session, row))


async def find(session: AsyncSession, name: str) -> App | None:
    """The row of a name."""
    return (await session.exec(select(App).where(col(App.name) == name))).first()


async def put(change: Change, row: App | None, settings: AppSettings) -> App:
    """Make the row say what `settings` say, with its record, in the caller's transaction."""
    await _check_servers(change.session, settings.servers or ())
    before = None if row is None else settings_of(row)
    found = differences(before, settings)
    if row is not None and not found:
        return row
    if row is None:
        row = App(id=new_id("app", change.now), name=settings.name, created_at=change.now)
        row.servers = row.identity = row.disabled_at = None
    _write(row, settings)
    change.session.add(row)
    await change.session.flush()
    fields: dict[str, JSONValue] = {
        "name": settings.name,
        "mode": settings.wait,
        "definition": digest_of(settings),
        **({} if settings.servers is None else {"servers": list(settings.servers[:40])}),
    }
    if before is None:
        change.record("app.created", {"app": row.id}, fields)
    else:
        more = {"changes": names(found), "before": digest_of(before)}
        change.record("app.changed", {"app": row.id}, {**fields, **more})
    return row


def settings_of(row: App) -> AppSettings:
    """What a person configured of a stored app."""
    servers = None if row.servers is None else tuple(sorted(row.servers))
    identity = None if row.identity is None else IdentitySettings(**row.identity)
    return AppSettings(row.name, row.owner, row.wait, row.plain, row.heartbeat, servers, identity)


def _write(row: App, settings: AppSettings) -> None:
    row.owner = settings.owner
    row.wait = settings.wait
    row.plain = settings.plain
    row.heartbeat = settings.heartbeat
    row.servers = None if settings.servers is None else list(settings.servers)
    row.identity = None if settings.identity is None else settings.identity.row()


async def _switch(ledger: Ledger, name: str, disabled_at: datetime | None, by: By) -> None:
    async with changing(ledger, by.actor, by.now) as changed:
        row = await _known(changed.session, name)
        if (row.disabled_at is None) == (disabled_at is None):
            return
        row.disabled_at = disabled_at
        changed.session.add(row)
        fields: dict[str, JSONValue] = {
            "name": name,
            "changes": ["disabled"],
            "disabled": disabled_at is not None,
        }
        changed.record("app.changed", {"app": row.id}, fields)


async def _add_key(change: Change, app: App) -> NewKey:
    key = new_key()
    change.session.add(
        AppKey(
            id=key.id,
            app_id=app.id,
            digest=digest(key.text),
            created_at=change.now,
            revoked_at=None,
        )
    )
    await change.session.flush()
    change.record("app_key.created", {"app": app.id}, {"key_id": key.id, "name": app.name})
    return key


async def _check_servers(session: AsyncSession, labels: Sequence[str]) -> None:
    live = select(col(Server.label)).where(col(Server.removed_at).is_(None))
    known = set(await session.exec(live))
    missing = [label for label in labels if label not in known]
    if missing:
        shown = ", ".join(repr(label) for label in missing)
        raise Refused(
            f"No server is registered with the label {shown}; register it first.",
            code="server_unknown",
            param="servers",
        )


async def _known(session: AsyncSession, name: str) -> App:
    row = await find(session, name)
    if row is None:
        raise NotFound(f"No app has the name {name!r}.", code="app_unknown")
    return row


async def _keys(session: AsyncSession, app: App) -> list[KeyEntry]:
    mine = select(AppKey).where(col(AppKey.app_id) == app.id)
    rows = await session.exec(mine.order_by(col(AppKey.created_at), col(AppKey.id)))
    return [KeyEntry(row.id, row.created_at, row.revoked_at) for row in rows]


def _entry(row: App, keys: Sequence[KeyEntry]) -> AppEntry:
    return AppEntry(row.id, settings_of(row), row.created_at, row.disabled_at, tuple(keys))
