"""Policy versions: saved once, never changed, one of them active; an older one can come back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue
from gateway.errors import NotFound, Refused, Unavailable
from gateway.policy import Policy, parse
from gateway.registry.changes import Change, changing
from gateway.store.database import Database
from gateway.store.ids import new_id
from gateway.store.tables import PolicyVersion, ReviewerGroup


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A version as people see it. `rules` is what `gateway.policy.parse` reads."""

    id: str
    number: int
    digest: str
    rules: list[dict[str, Any]]
    created_at: datetime
    created_by: str
    activated_at: datetime | None
    active: bool


async def save(ledger: Ledger, policy: Policy, *, actor: Actor, now: datetime) -> PolicyEntry:
    """Save `policy` as the next version and put it into force.

    When it is what is in force already, that version is returned and nothing is recorded.
    """
    async with changing(ledger, actor, now) as change:
        return _entry(await put(change, policy))


async def activate(ledger: Ledger, number: int, *, actor: Actor, now: datetime) -> PolicyEntry:
    """Put an older version into force again."""
    async with changing(ledger, actor, now) as change:
        row = await _numbered(change.session, number)
        policy = checked(row)
        await _check_groups(change.session, policy)
        before = await active_row(change.session)
        if before is None or before.id != row.id:
            await _put_into_force(change, row, before, policy)
        return _entry(row)


async def read_active(db: Database) -> PolicyEntry | None:
    """The version in force; None while there is none (then every call is held)."""
    async with db.reading() as session:
        row = await active_row(session)
        return None if row is None else _entry(row)


async def read(db: Database, number: int) -> PolicyEntry:
    """One version; `NotFound` when there is none of that number."""
    async with db.reading() as session:
        return _entry(await _numbered(session, number))


async def listing(db: Database, *, limit: int = 100) -> list[PolicyEntry]:
    """The newest versions first."""
    async with db.reading() as session:
        newest = select(PolicyVersion).order_by(col(PolicyVersion.number).desc()).limit(limit)
        return [_entry(row) for row in await session.exec(newest)]


async def put(change: Change, policy: Policy) -> PolicyVersion:
    """Put `policy` into force, as a new version if it differs, in the caller's transaction."""
    before = await active_row(change.session)
    if before is not None and before.digest == policy.digest:
        return before
    await _check_groups(change.session, policy)
    highest = (await change.session.exec(select(func.max(PolicyVersion.number)))).one()
    row = PolicyVersion(
        id=new_id("pol", change.now),
        number=(highest or 0) + 1,
        digest=policy.digest,
        rules=policy.documents(),
        created_at=change.now,
        created_by=change.actor.ref,
        activated_at=None,
        deactivated_at=None,
    )
    await _put_into_force(change, row, before, policy)
    return row


async def active_row(session: AsyncSession) -> PolicyVersion | None:
    """The row in force."""
    active = select(PolicyVersion).where(
        col(PolicyVersion.activated_at).is_not(None), col(PolicyVersion.deactivated_at).is_(None)
    )
    return (await session.exec(active)).first()


async def groups_in_use(session: AsyncSession) -> frozenset[str]:
    """The reviewer groups that rules in force ask for."""
    row = await active_row(session)
    return frozenset() if row is None else _groups(checked(row))


def checked(row: PolicyVersion) -> Policy:
    """The policy of a row; `Unavailable` when it is not what was saved."""
    try:
        policy = parse(row.rules)
    except Refused:
        policy = None
    if policy is None or policy.digest != row.digest:
        raise Unavailable(
            f"Policy version {row.number} is not what was saved: its digest differs.",
            code="policy_altered",
        )
    return policy


async def _put_into_force(
    change: Change, row: PolicyVersion, before: PolicyVersion | None, policy: Policy
) -> None:
    ends = update(PolicyVersion).where(
        col(PolicyVersion.activated_at).is_not(None), col(PolicyVersion.deactivated_at).is_(None)
    )
    await change.session.exec(ends.values(deactivated_at=change.now))
    row.activated_at, row.deactivated_at = change.now, None
    change.session.add(row)
    await change.session.flush()
    fields: dict[str, JSONValue] = {
        "policy": row.digest,
        "number": row.number,
        "rules": len(policy.rules),
    }
    if before is not None:
        fields["before"] = before.digest
    change.record("policy.activated", {"policy": row.id}, fields)


async def _check_groups(session: AsyncSession, policy: Policy) -> None:
    known = set(await session.exec(select(col(ReviewerGroup.name))))
    missing = sorted(_groups(policy) - known)
    if missing:
        shown = ", ".join(repr(name) for name in missing)
        raise Refused(
            f"Rules ask for the reviewer group {shown}, which does not exist; create it first.",
            code="group_unknown",
            param="groups",
        )


def _groups(policy: Policy) -> frozenset[str]:
    return frozenset().union(*(rule.all_groups for rule in policy.rules))


async def _numbered(session: AsyncSession, number: int) -> PolicyVersion:
    found = select(PolicyVersion).where(col(PolicyVersion.number) == number)
    row = (await session.exec(found)).first()
    if row is None:
        raise NotFound(f"There is no policy version {number}.", code="policy_unknown")
    return row


def _entry(row: PolicyVersion) -> PolicyEntry:
    return PolicyEntry(
        id=row.id,
        number=row.number,
        digest=row.digest,
        rules=row.rules,
        created_at=row.created_at,
        created_by=row.created_by,
        activated_at=row.activated_at,
        active=row.activated_at is not None and row.deactivated_at is None,
    )
