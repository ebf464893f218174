"""Who stands in for whom, from when to when: with the groups of the other, not the roles.

Reviewers say it for themselves, admins for anybody. Whoever stands in must be a reviewer, and
passes nothing on: only a person's own groups are lent. What somebody may decide then is said by
the rules of reviewing, not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit import records
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotAllowed, NotFound, Refused
from gateway.identity import lookup
from gateway.identity.roles import Permission, allowed
from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.tables import Delegation, User

LONGEST = timedelta(days=180)


@dataclass(frozen=True)
class NewDelegation:
    """`to_email` is to stand in for `from_email`."""

    from_email: str
    to_email: str
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True)
class DelegationView:
    """Who stands in for whom; `state` is planned, active, over or revoked."""

    id: str
    from_email: str
    to_email: str
    starts_at: datetime
    ends_at: datetime
    revoked_at: datetime | None
    state: str


@dataclass(frozen=True)
class Delegator:
    """Somebody for whom another stands in now, with the groups that are lent."""

    email: str
    groups: frozenset[str]


@dataclass(frozen=True)
class Speaker:
    """Who says it: `email` None for the operator on the host, who speaks for anybody."""

    actor: Actor
    email: str | None = None
    roles: frozenset[str] = frozenset()

    def speaks_for(self, *addresses: str) -> bool:
        """Whether it is theirs to say about one of these people."""
        if self.email is None or allowed(self.roles, Permission.WRITE_USERS):
            return True
        return self.email.casefold() in addresses


async def create(
    ledger: Ledger, new: NewDelegation, *, speaker: Speaker, now: datetime
) -> DelegationView:
    """Let one reviewer stand in for another. Raises `Refused`, `NotAllowed`, `NotFound`."""
    _check_times(new, now)
    async with ledger.transaction() as tx:
        giver = await _reviewer(tx.session, new.from_email, "from")
        taker = await _reviewer(tx.session, new.to_email, "to")
        if giver.id == taker.id:
            raise Refused("Nobody stands in for themselves.", param="to")
        if not speaker.speaks_for(giver.email):
            raise NotAllowed("You can say who stands in for you, not for others.")
        row = Delegation(
            id=new_id("dlg", now),
            from_email=giver.email,
            to_email=taker.email,
            starts_at=new.starts_at,
            ends_at=new.ends_at,
            created_at=now,
            created_by=speaker.actor.ref,
        )
        tx.session.add(row)
        fields = {
            "delegation": row.id,
            "begins": records.timestamp(row.starts_at),
            "expires": records.timestamp(row.ends_at),
        }
        subject = {"user": taker.id, "instead_of": giver.id}
        tx.record(
            records.make(
                "delegation.created",
                now=now,
                actor=speaker.actor,
                subject=subject,
                key=row.id,
                fields=fields,
            )
        )
    await tx.sealed()
    return _view(row, now)


async def revoke(
    ledger: Ledger, delegation_id: str, *, speaker: Speaker, now: datetime
) -> DelegationView:
    """End it at once: by either of the two, or an admin. `Conflict` when it is over already."""
    async with ledger.transaction() as tx:
        row = await tx.session.get(Delegation, delegation_id)
        if row is None or not speaker.speaks_for(row.from_email, row.to_email):
            raise NotFound(f"There is no delegation {delegation_id} of yours.")
        changed = await compare_and_set(
            tx.session,
            update(Delegation)
            .where(
                col(Delegation.id) == delegation_id,
                col(Delegation.revoked_at).is_(None),
                col(Delegation.ends_at) > now,
            )
            .values(revoked_at=now),
        )
        if changed != 1:
            raise Conflict("This delegation is over already.", code="delegation_over")
        giver = await lookup.find(tx.session, row.from_email)
        taker = await lookup.find(tx.session, row.to_email)
        tx.record(
            records.make(
                "delegation.ended",
                now=now,
                actor=speaker.actor,
                subject={"user": taker.id, "instead_of": giver.id},
                key=row.id,
                fields={"delegation": row.id},
            )
        )
    async with ledger.db.reading() as session:
        return _view(await session.get_one(Delegation, delegation_id), now)


async def listing(
    db: Database, *, speaker: Speaker, now: datetime, limit: int = 200
) -> list[DelegationView]:
    """Those that concern the speaker, or all of them for an admin; the newest first."""
    query = select(Delegation).order_by(col(Delegation.id).desc()).limit(limit)
    if not speaker.speaks_for():
        mine = (speaker.email or "").casefold()
        query = query.where(or_(Delegation.from_email == mine, Delegation.to_email == mine))
    async with db.reading() as session:
        return [_view(row, now) for row in await session.exec(query)]


async def lent_to(db: Database, email: str, now: datetime) -> list[Delegator]:
    """The same as `delegators`, for who only looks."""
    async with db.reading() as session:
        return await delegators(session, email, now)


async def delegators(session: AsyncSession, email: str, now: datetime) -> list[Delegator]:
    """For whom this person stands in now. Who is disabled or no reviewer lends nothing."""
    found = await session.exec(
        select(User)
        .join(Delegation, col(Delegation.from_email) == User.email)
        .where(
            Delegation.to_email == email.casefold(),
            col(Delegation.revoked_at).is_(None),
            col(Delegation.starts_at) <= now,
            col(Delegation.ends_at) > now,
            col(User.disabled_at).is_(None),
        )
    )
    users = [user for user in found if allowed(user.roles, Permission.REVIEW_REQUESTS)]
    groups = await lookup.groups(session) if users else []
    return [Delegator(user.email, frozenset(lookup.groups_of(groups, user))) for user in users]


def _check_times(new: NewDelegation, now: datetime) -> None:
    if new.ends_at <= max(new.starts_at, now):
        raise Refused("It has to end after it starts, and in the future.", param="until")
    if new.ends_at - new.starts_at > LONGEST:
        raise Refused(f"At most {LONGEST.days} days at a time.", param="until")


async def _reviewer(session: AsyncSession, email: str, param: str) -> User:
    user = await lookup.by_email(session, email)
    if user is None or user.disabled_at is not None:
        raise Refused("There is no such user, or the user is disabled.", param=param)
    if not allowed(user.roles, Permission.REVIEW_REQUESTS):
        raise Refused("Only reviewers stand in for reviewers.", param=param)
    return user


def _view(row: Delegation, now: datetime) -> DelegationView:
    return DelegationView(
        row.id,
        row.from_email,
        row.to_email,
        row.starts_at,
        row.ends_at,
        row.revoked_at,
        _state(row, now),
    )


def _state(row: Delegation, now: datetime) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if now < row.starts_at:
        return "planned"
    return "active" if now < row.ends_at else "over"
