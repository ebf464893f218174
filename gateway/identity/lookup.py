"""Finding people and what belongs to them, inside a session somebody else opened.

Shared by the use cases of this package; decides nothing and records nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.errors import NotFound
from gateway.store.tables import ReviewerGroup, User, WebSession


def memberships(groups: Iterable[ReviewerGroup], email: str) -> tuple[str, ...]:
    """Names of the reviewer groups that list this e-mail address, in order."""
    wanted = email.casefold()
    return tuple(
        sorted(g.name for g in groups if any(m.strip().casefold() == wanted for m in g.members))
    )


def groups_of(groups: Iterable[ReviewerGroup], user: User) -> tuple[str, ...]:
    """Names of the reviewer groups of a person: by address, and as the provider says."""
    return tuple(sorted({*memberships(groups, user.email), *(user.groups or ())}))


async def groups(session: AsyncSession) -> list[ReviewerGroup]:
    """Every reviewer group."""
    return list((await session.exec(select(ReviewerGroup))).all())


async def find(session: AsyncSession, user: str) -> User:
    """The user with this id or, if it has an @, this e-mail address; raises `NotFound`."""
    found = await by_email(session, user) if "@" in user else await session.get(User, user)
    if found is None:
        raise NotFound(f"There is no user {user!r}.")
    return found


async def by_email(session: AsyncSession, email: str) -> User | None:
    """The user with this e-mail address, however it is capitalised."""
    query = select(User).where(col(User.email) == email.strip().casefold())
    return (await session.exec(query)).first()


async def end_sessions(session: AsyncSession, user_id: str, now: datetime) -> None:
    """End every web session of a user inside the caller's transaction."""
    await session.exec(
        update(WebSession)
        .where(col(WebSession.user_id) == user_id, col(WebSession.ended_at).is_(None))
        .values(ended_at=now)
    )
