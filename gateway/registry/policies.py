"""Policy versions: saved once, never changed, one of them active; an older one can come back.

Another one may be in shadow: it only says what it would have said.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue
from gateway.errors import Conflict, NotFound, Refused, Unavailable
from gateway.policy import Comparison, Policy, compare, parse
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
    shadow_since: datetime | None
    shadow: bool


async def save(
    ledger: Ledger, policy: Policy, *, actor: Actor, now: datetime, activate: bool = True
) -> PolicyEntry:
    """Save `policy` as the next version, and put it into force unless told otherwise.

    When it is what is in force already, that version is returned and nothing is recorded.
    """
    async with changing(ledger, actor, now) as change:
        row = await put(change, policy) if activate else await _keep(change, policy)
        return _entry(row)


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


async def begin_shadow(ledger: Ledger, number: int, *, actor: Actor, now: datetime) -> PolicyEntry:
    """Have it recorded from now on what a version would say, in place of another such."""
    async with changing(ledger, actor, now) as change:
        row = await _numbered(change.session, number)
        checked(row)
        if _is_active(row):
            raise Conflict(f"Version {number} is in force; it says what counts.")
        before = await shadow_row(change.session)
        if before is not None and before.id == row.id:
            return _entry(row)
        fields: dict[str, JSONValue] = {"policy": row.digest, "number": row.number}
        if before is not None:
            await _end_shadow(change, before)
            fields["before"] = before.digest
        row.shadow_since, row.shadow_until = change.now, None
        change.session.add(row)
        change.record("policy.shadow_begun", {"policy": row.id}, fields)
        return _entry(row)


async def end_shadow(
    ledger: Ledger, number: int | None = None, *, actor: Actor, now: datetime
) -> PolicyEntry:
    """End it; `NotFound` when that version (None: any) is not in shadow."""
    async with changing(ledger, actor, now) as change:
        row = await shadow_row(change.session)
        if row is None or number not in (None, row.number):
            which = "No version" if number is None else f"Version {number}"
            what = "is" if number is None else "is not"
            raise NotFound(f"{which} {what} in shadow.", code="policy_unknown")
        await _end_shadow(change, row)
        return _entry(row)


async def differences(db: Database, before: int, after: int) -> Comparison:
    """What the version `after` says otherwise than `before`."""
    async with db.reading() as session:
        rows = [await _numbered(session, number) for number in (before, after)]
    return compare(checked(rows[0]), checked(rows[1]))


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
    row = await _new(change, policy)
    await _put_into_force(change, row, before, policy)
    return row


async def _keep(change: Change, policy: Policy) -> PolicyVersion:
    row = await _new(change, policy)
    change.session.add(row)
    fields: dict[str, JSONValue] = {
        "policy": row.digest,
        "number": row.number,
        "rules": len(policy.rules),
    }
    change.record("policy.saved", {"policy": row.id}, fields)
    return row


async def _new(change: Change, policy: Policy) -> PolicyVersion:
    await _check_groups(change.session, policy)
    highest = (await change.session.exec(select(func.max(PolicyVersion.number)))).one()
    return PolicyVersion(
        id=new_id("pol", change.now),
        number=(highest or 0) + 1,
        digest=policy.digest,
        rules=policy.documents(),
        created_at=change.now,
        created_by=change.actor.ref,
        activated_at=None,
        deactivated_at=None,
    )


async def shadow_row(session: AsyncSession) -> PolicyVersion | None:
    """The row in shadow."""
    shadow = select(PolicyVersion).where(
        col(PolicyVersion.shadow_since).is_not(None), col(PolicyVersion.shadow_until).is_(None)
    )
    return (await session.exec(shadow)).first()


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
    if row.shadow_since is not None and row.shadow_until is None:
        await _end_shadow(change, row)
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


async def _end_shadow(change: Change, row: PolicyVersion) -> None:
    row.shadow_until = change.now
    change.session.add(row)
    await change.session.flush()
    fields: dict[str, JSONValue] = {"policy": row.digest, "number": row.number}
    change.record("policy.shadow_ended", {"policy": row.id}, fields)


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
        active=_is_active(row),
        shadow_since=row.shadow_since,
        shadow=row.shadow_since is not None and row.shadow_until is None,
    )


def _is_active(row: PolicyVersion) -> bool:
    return row.activated_at is not None and row.deactivated_at is None
