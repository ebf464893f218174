"""Reviewer groups: named people whom a rule may ask for."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue
from gateway.errors import Conflict, NotFound
from gateway.registry import policies
from gateway.registry.changes import Change, changing
from gateway.registry.settings import GroupSettings
from gateway.store.database import Database
from gateway.store.tables import ReviewerGroup


async def set_members(
    ledger: Ledger, settings: GroupSettings, *, actor: Actor, now: datetime
) -> GroupSettings:
    """Create the group or replace its members; without a difference nothing is recorded."""
    async with changing(ledger, actor, now) as change:
        row = await change.session.get(ReviewerGroup, settings.name)
        await put(change, row, settings)
    return settings


async def remove(ledger: Ledger, name: str, *, actor: Actor, now: datetime) -> None:
    """Remove a group; `Conflict` while the active policy asks for it."""
    async with changing(ledger, actor, now) as change:
        row = await change.session.get(ReviewerGroup, name)
        if row is None:
            raise NotFound(f"No reviewer group has the name {name!r}.", code="group_unknown")
        if name in await policies.groups_in_use(change.session):
            raise Conflict(
                f"Rules of the active policy ask for the group {name!r}; change them first.",
                code="group_in_use",
            )
        await change.session.delete(row)
        fields: dict[str, JSONValue] = {"name": name, "members": 0, "changes": ["removed"]}
        change.record("group.changed", {"group": name}, fields)


async def listing(db: Database) -> list[GroupSettings]:
    """Every group, by name."""
    async with db.reading() as session:
        return await all_groups(session)


async def all_groups(session: AsyncSession) -> list[GroupSettings]:
    """Every group, by name, in the caller's transaction."""
    rows = await session.exec(select(ReviewerGroup).order_by(col(ReviewerGroup.name)))
    return [settings_of(row) for row in rows]


async def put(change: Change, row: ReviewerGroup | None, settings: GroupSettings) -> None:
    """Make the row say what `settings` say, with its record, in the caller's transaction."""
    if row is not None and settings_of(row) == settings:
        return
    if row is None:
        row = ReviewerGroup(name=settings.name, members=[])
    row.members = list(settings.members)
    change.session.add(row)
    await change.session.flush()
    # Addresses of people stand in no record: the ledger cannot forget.
    fields: dict[str, JSONValue] = {
        "name": settings.name,
        "members": len(settings.members),
        "changes": ["members"],
    }
    change.record("group.changed", {"group": settings.name}, fields)


def settings_of(row: ReviewerGroup) -> GroupSettings:
    """What a person configured of a stored group."""
    return GroupSettings(row.name, tuple(sorted(row.members)))
