"""Which server may be sent which secret, and at which origin: said by whom it concerns, in advance.

A reference in a server's configuration is only a wish. It is good for that server at one origin
(scheme, host and port) once somebody who may set credentials, a declarative file or the host's
operator has bound it. Another origin, or the end of the server, ends that; nothing revives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.records import Actor, JSONValue
from gateway.errors import Conflict
from gateway.registry.changes import Change
from gateway.store.database import Database
from gateway.store.references import origin_of
from gateway.store.tables import BoundCredential, Server

#: Why a binding ended.
ORIGIN, CREDENTIAL, REMOVED = "origin_changed", "credential_changed", "server_removed"


@dataclass(frozen=True, slots=True)
class Binding:
    """A reference is good for `origin`. `how`: session, token, host, file or migration."""

    origin: str
    by: str
    how: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Use:
    """A server that names a reference; `bound` whether it may be sent it as it is now."""

    reference: str
    server: str
    origin: str
    bound: Binding | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody saw before they confirmed: the reference, and where it would go."""

    reference: str
    origin: str


def how(actor: Actor) -> str:
    """How somebody binds in person: the way they came in by."""
    return actor.auth or actor.kind


async def bind(change: Change, row: Server, way: str) -> None:
    """Bind the server's credential to where the server is now, in the caller's transaction.

    What is bound so already stays as it is.
    """
    if row.credential is None:
        return
    reference, origin = row.credential["from"], origin_of(row.url)
    known = await change.session.get(BoundCredential, (reference, row.id))
    if known is not None and known.origin == origin:
        return
    await change.session.merge(
        BoundCredential(
            reference=reference,
            server_id=row.id,
            origin=origin,
            bound_by=change.actor.ref,
            bound_how=way,
            bound_at=change.now,
        )
    )
    await change.session.flush()
    fields: dict[str, JSONValue] = {"reference": reference, "origin": origin, "source": way}
    change.record("credential.bound", _subject(row), fields)


async def confirm(change: Change, row: Server, seen: Seen, way: str) -> None:
    """Bind what was seen; `Conflict` when the server has another credential or origin now."""
    now = None if row.credential is None else Seen(row.credential["from"], origin_of(row.url))
    if now != seen:
        raise Conflict(
            f"The server {row.label!r} has another credential or address than you saw; look again.",
            code="binding_changed",
        )
    await bind(change, row, way)


async def end(change: Change, row: Server, why: str | None = None) -> None:
    """End what does not fit the server as it is now; all of its bindings when it says `why`."""
    mine = select(BoundCredential).where(col(BoundCredential.server_id) == row.id)
    for bound in (await change.session.exec(mine)).all():
        if reason := why or _misfit(row, bound):
            this = col(BoundCredential.reference) == bound.reference
            await change.session.exec(
                delete(BoundCredential).where(this, col(BoundCredential.server_id) == row.id)
            )
            fields: dict[str, JSONValue] = {
                "reference": bound.reference,
                "origin": bound.origin,
                "code": reason,
            }
            change.record("credential.unbound", _subject(row), fields)


async def origins(session: AsyncSession) -> Mapping[tuple[str, str], str]:
    """The origin for each (reference, server id) that is bound."""
    rows = (await session.exec(select(BoundCredential))).all()
    return {(row.reference, row.server_id): row.origin for row in rows}


async def fitting(session: AsyncSession) -> Mapping[str, Binding]:
    """By server id: the binding of its credential, where it fits the server as it is now."""
    both = select(BoundCredential, Server).where(
        col(BoundCredential.server_id) == col(Server.id), col(Server.removed_at).is_(None)
    )
    return {
        row.id: Binding(bound.origin, bound.bound_by, bound.bound_how, bound.bound_at)
        for bound, row in await session.exec(both)
        if _misfit(row, bound) is None
    }


async def uses(db: Database) -> list[Use]:
    """Which servers use which reference, by reference and label."""
    async with db.reading() as session:
        bound = await fitting(session)
        rows = (await session.exec(select(Server).where(col(Server.removed_at).is_(None)))).all()
    found = [
        Use(row.credential["from"], row.label, origin_of(row.url), bound.get(row.id))
        for row in rows
        if row.credential is not None
    ]
    return sorted(found, key=lambda use: (use.reference, use.server))


def _misfit(row: Server, bound: BoundCredential) -> str | None:
    if row.credential is None or row.credential["from"] != bound.reference:
        return CREDENTIAL
    return None if origin_of(row.url) == bound.origin else ORIGIN


def _subject(row: Server) -> dict[str, str]:
    return {"server": row.label, "server_id": row.id}
