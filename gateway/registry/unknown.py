"""Servers that apps wanted to use and nobody has registered: refused, and noted here for people.

An app cannot fill the database with them: only the newest of each app, and of all, are kept. An
address can itself be a secret, so queries and long, random looking parts of paths are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.egress import addresses
from gateway.errors import NotFound, Refused
from gateway.registry.changes import changing
from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import UnknownServer

MOST_OF_AN_APP, MOST = 50, 1000
_LONGEST = 300
#: A part of a path that no person wrote: long, or of letters and digits without a word.
_OPAQUE = re.compile(r"[^/]{25,}|(?=[^/]*[0-9])(?=[^/]*[A-Za-z])[A-Za-z0-9_%~-]{12,}")


@dataclass(frozen=True, slots=True)
class UnknownEntry:
    """A server that an app asked for: its address, or its label where it gave none."""

    id: str
    app: str
    address: str
    first_seen: datetime
    last_seen: datetime
    times: int


def shown_address(url: str | None, label: str) -> str:
    """What is kept of what an app named: scheme, host, port and the readable parts of the path."""
    try:
        address = None if url is None else addresses.normalise(url)
    except Refused:
        address = None
    if address is None:
        return f"label {label}"[:_LONGEST]
    scheme, _, rest = address.url.partition("?")[0].partition("://")
    host, *parts = rest.split("/")
    path = ("…" if _OPAQUE.fullmatch(part) else part for part in parts)
    return "/".join((f"{scheme}://{host}", *path))[:_LONGEST]


async def note(db: Database, app: tuple[str, str], address: str, *, now: datetime) -> None:
    """Note that an app, by id and name, wanted to use the server at `address`."""
    if await _again(db, app[0], address, now):
        return
    try:
        async with db.transaction() as session:
            await _make_room(session, app[0])
            session.add(
                UnknownServer(
                    id=new_id("uns", now),
                    app_id=app[0],
                    app_name=app[1],
                    address=address,
                    first_seen=now,
                    last_seen=now,
                )
            )
    except IntegrityError:
        await _again(db, app[0], address, now)  # another request was a moment faster


async def listing(db: Database) -> list[UnknownEntry]:
    """All of them, the newest first."""
    async with db.reading() as session:
        order = col(UnknownServer.last_seen).desc(), col(UnknownServer.id).desc()
        rows = await session.exec(select(UnknownServer).order_by(*order))
        return [_entry(row) for row in rows]


async def forget(ledger: Ledger, entry_id: str, *, actor: Actor, now: datetime) -> None:
    """Take one off the list; it comes back when an app asks for it again."""
    async with changing(ledger, actor, now) as change:
        row = await change.session.get(UnknownServer, entry_id)
        if row is None:
            raise NotFound(f"There is no unknown server {entry_id!r}.", code="server_unknown")
        await change.session.delete(row)
        fields = {"url": row.address}
        change.record("server.forgotten", {"app": row.app_name}, fields)


async def _again(db: Database, app_id: str, address: str, now: datetime) -> bool:
    async with db.transaction() as session:
        known = update(UnknownServer).where(
            col(UnknownServer.app_id) == app_id, col(UnknownServer.address) == address
        )
        values: dict[str, Any] = {"last_seen": now, "times": col(UnknownServer.times) + 1}
        return await compare_and_set(session, known.values(**values)) == 1


async def _make_room(session: AsyncSession, app_id: str) -> None:
    mine: Any = col(UnknownServer.app_id) == app_id
    for most, which in ((MOST_OF_AN_APP, [mine]), (MOST, [])):
        count = (await session.exec(select(func.count(col(UnknownServer.id))).where(*which))).one()
        if count >= most:
            oldest = await _oldest(session, which, count - most + 1)
            await session.exec(delete(UnknownServer).where(col(UnknownServer.id).in_(oldest)))


async def _oldest(session: AsyncSession, which: Sequence[Any], count: int) -> Sequence[str]:
    found = await session.exec(
        select(UnknownServer.id)
        .where(*which)
        .order_by(col(UnknownServer.last_seen), col(UnknownServer.id))
        .limit(count)
    )
    return found.all()


def _entry(row: UnknownServer) -> UnknownEntry:
    return UnknownEntry(row.id, row.app_name, row.address, row.first_seen, row.last_seen, row.times)
