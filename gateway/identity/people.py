"""Users, their roles and reviewer groups: use cases and reads.

Every change is one transaction with its audit record; records name users by their pseudonymous
`usr_…` id, never by e-mail address. What gives authority returns only once a signed head covers
its record; what takes it away does not wait. Edges ask `roles` whether the actor may do it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit import records
from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, Refused
from gateway.identity import lookup
from gateway.identity.roles import ROLES
from gateway.identity.tokens import create_token as create_token
from gateway.identity.tokens import revoke_token as revoke_token
from gateway.identity.tokens import tokens_of as tokens_of
from gateway.store.database import Database
from gateway.store.ids import new_id
from gateway.store.tables import AccessToken, ReviewerGroup, SignInLink, User


@dataclass(frozen=True)
class NewUser:
    """Who is to be created; `name` is optional and only shown."""

    email: str
    roles: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class UserView:
    """A user as others may see them."""

    id: str
    email: str
    name: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None
    source: str = "local"  # local | provider: who says which roles the person has


@dataclass(frozen=True)
class GroupView:
    """A reviewer group: the people, by e-mail address, whom a rule may ask for."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class UserPage:
    """Users in order of id; `next` is the cursor of the next page or None."""

    items: tuple[UserView, ...]
    next: str | None


async def create_user(ledger: Ledger, new: NewUser, *, actor: Actor, now: datetime) -> UserView:
    """Create a user. Raises `Refused` for a bad address or role, `Conflict` when one exists."""
    user = User(
        id=new_id("usr", now),
        email=_address(new.email),
        name=_name(new.name),
        roles=_known(new.roles),
        created_at=now,
    )
    async with ledger.transaction() as tx:
        if await lookup.by_email(tx.session, user.email) is not None:
            raise _taken(user.email)
        tx.session.add(user)
        try:
            await tx.session.flush()
        except IntegrityError:
            raise _taken(user.email) from None
        tx.record(
            records.make(
                "user.created",
                now=now,
                actor=actor,
                subject={"user": user.id},
                fields={"roles": list(user.roles)},
            )
        )
        view = _view(user, await lookup.groups(tx.session))
    await tx.sealed()
    return view


async def listing(db: Database, *, after: str | None = None, limit: int = 50) -> UserPage:
    """Users in order of creation, `limit` at a time, after the user id `after`."""
    query = select(User).order_by(col(User.id)).limit(limit + 1)
    if after is not None:
        query = query.where(col(User.id) > after)
    async with db.reading() as session:
        users = (await session.exec(query)).all()
        known = await lookup.groups(session)
    shown = tuple(_view(user, known) for user in users[:limit])
    return UserPage(shown, shown[-1].id if len(users) > limit else None)


async def admins(db: Database, most: int = 3) -> tuple[str, ...]:
    """Addresses of some who can give roles, for somebody who has none."""
    query = select(User).where(col(User.disabled_at).is_(None)).order_by(col(User.id))
    async with db.reading() as session:
        users = (await session.exec(query)).all()
    return tuple(user.email for user in users if "admin" in user.roles)[:most]


async def read(db: Database, user: str) -> UserView:
    """The user with this id or e-mail address; raises `NotFound`."""
    async with db.reading() as session:
        return _view(await lookup.find(session, user), await lookup.groups(session))


async def groups(db: Database) -> tuple[GroupView, ...]:
    """Every reviewer group, in order of name; members need not be users yet."""
    async with db.reading() as session:
        rows = await lookup.groups(session)
    return tuple(GroupView(g.name, tuple(g.members)) for g in sorted(rows, key=lambda g: g.name))


async def set_roles(
    ledger: Ledger, user: str, roles: Iterable[str], *, actor: Actor, now: datetime
) -> UserView:
    """Replace a user's roles. Raises `Conflict` when that would leave no admin, and for somebody
    whose roles the identity provider says.
    """
    wanted = _known(roles)
    async with ledger.transaction() as tx:
        row = await lookup.find(tx.session, user)
        if row.issuer is not None:
            raise Conflict(
                "The roles of this person come from the identity provider: change them there.",
                code="roles_from_provider",
            )
        if "admin" in row.roles and "admin" not in wanted:
            await keep_an_admin(tx.session, row)
        if row.roles != wanted:
            row.roles = wanted
            tx.session.add(row)
            tx.record(changed(row, "roles", actor, now))
        view = _view(row, await lookup.groups(tx.session))
    await tx.sealed()
    return view


async def disable(ledger: Ledger, user: str, *, actor: Actor, now: datetime) -> UserView:
    """Refuse this user from now on, everywhere: sessions, tokens and links end with it.

    Raises `Conflict` for the last admin. Disabling a disabled user changes nothing.
    """
    async with ledger.transaction() as tx:
        row = await lookup.find(tx.session, user)
        if row.disabled_at is None:
            if "admin" in row.roles:
                await keep_an_admin(tx.session, row)
            row.disabled_at = now
            tx.session.add(row)
            await _end_everything(tx.session, row.id, now)
            tx.record(changed(row, "disabled", actor, now))
        return _view(row, await lookup.groups(tx.session))


async def enable(ledger: Ledger, user: str, *, actor: Actor, now: datetime) -> UserView:
    """Let a disabled user sign in again; what was ended stays ended."""
    async with ledger.transaction() as tx:
        row = await lookup.find(tx.session, user)
        if row.disabled_at is not None:
            row.disabled_at = None
            tx.session.add(row)
            tx.record(changed(row, "disabled", actor, now))
        view = _view(row, await lookup.groups(tx.session))
    await tx.sealed()
    return view


async def keep_an_admin(session: AsyncSession, leaving: User) -> None:
    """Raises `Conflict` when nobody else is an admin."""
    # Locked in one order, so that two admins who remove each other cannot both succeed.
    query = select(User).where(col(User.disabled_at).is_(None)).order_by(col(User.id))
    enabled = (await session.exec(query.with_for_update())).all()
    if not any("admin" in user.roles for user in enabled if user.id != leaving.id):
        raise Conflict(
            "This is the last admin: give the role to somebody else first.", code="last_admin"
        )


async def _end_everything(session: AsyncSession, user_id: str, now: datetime) -> None:
    await lookup.end_sessions(session, user_id, now)
    await session.exec(
        update(AccessToken)
        .where(col(AccessToken.user_id) == user_id, col(AccessToken.revoked_at).is_(None))
        .values(revoked_at=now)
    )
    await session.exec(
        update(SignInLink)
        .where(col(SignInLink.user_id) == user_id, col(SignInLink.used_at).is_(None))
        .values(used_at=now)
    )


def _view(user: User, groups: Iterable[ReviewerGroup]) -> UserView:
    return UserView(
        id=user.id,
        email=user.email,
        name=user.name,
        roles=tuple(user.roles),
        groups=lookup.groups_of(groups, user),
        created_at=user.created_at,
        disabled_at=user.disabled_at,
        source="local" if user.issuer is None else "provider",
    )


def _address(text: str) -> str:
    email = text.strip().casefold()
    local, at, domain = email.partition("@")
    plain = email.isprintable() and not any(c.isspace() or c in "@<>,;" for c in local + domain)
    if not (local and at and domain and plain and len(email) <= 254):
        raise Refused("This is not an e-mail address.", param="email")
    return email


def _name(text: str | None) -> str | None:
    name = (text or "").strip()
    if len(name) > 100 or not name.isprintable():
        raise Refused("A name has at most 100 printable characters.", param="name")
    return name or None


def _known(roles: Iterable[str]) -> list[str]:
    wanted = set(roles)
    if unknown := wanted - set(ROLES):
        raise Refused(
            f"Unknown role {min(unknown)!r}: choose among {', '.join(ROLES)}.", param="roles"
        )
    return [role for role in ROLES if role in wanted]


def _taken(email: str) -> Conflict:
    return Conflict(f"There is already a user {email}.", code="user_exists")


def changed(
    user: User, change: str, actor: Actor, now: datetime, *, source: str | None = None
) -> records.Record:
    """The record of a change of one member; `source` names who else said so."""
    return records.make(
        "user.changed",
        now=now,
        actor=actor,
        subject={"user": user.id},
        key=new_id("chg", now),
        fields={
            "changes": [change],
            "roles": list(user.roles),
            "disabled": user.disabled_at is not None,
            **({"source": source} if source else {}),
        },
    )
