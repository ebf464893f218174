"""Which of several gateways drives an exchange: claims by fence, and what was asked for again.

Whose it is says the row of the exchange, and every write about an exchange names the fence of the
claim it was made under. A replica that slept too long therefore finds nothing that it may still do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, update
from sqlmodel import col, or_, select

from gateway.approvals.kept import Kept
from gateway.approvals.lease import Lease
from gateway.store.database import Database, compare_and_set
from gateway.store.notifications import EXCHANGE, tell
from gateway.store.tables import ApprovalRequest, Exchange
from gateway.telemetry import utc_now

OPEN = ("forwarding", "holding", "sending")
_BATCH = 500


# --- whose an exchange is -------------------------------------------------------------------


async def free(db: Database, lease: Lease) -> list[tuple[str, int]]:
    """Open exchanges that nobody drives, with their fences."""
    async with db.reading() as session:
        found = await session.exec(
            select(Exchange.id, Exchange.fence)
            .where(
                col(Exchange.state).in_(OPEN),
                or_(col(Exchange.owner).is_(None), ~lease.lives(col(Exchange.owner))),
            )
            .order_by(col(Exchange.id))
        )
        return [(name, fence) for name, fence in found.all()]


async def take(db: Database, lease: Lease, exchange_id: str, fence: int) -> bool:
    """Claim an open exchange as it was seen; false when somebody was first."""
    async with db.transaction() as session:
        changed = await compare_and_set(
            session,
            update(Exchange)
            .where(
                col(Exchange.id) == exchange_id,
                col(Exchange.fence) == fence,
                col(Exchange.state).in_(OPEN),
            )
            .values(
                owner=lease.id,
                fence=fence + 1,
                # Its connections went with the old owner.
                left_at=func.coalesce(col(Exchange.left_at), utc_now()),
            ),
        )
        await tell(session, EXCHANGE, exchange_id)
    return changed == 1


async def let_go(db: Database, kept: Kept) -> None:
    """Leave an exchange to whoever wants it; nothing happens when it is somebody's already."""
    async with db.transaction() as session:
        await session.exec(
            update(Exchange)
            .where(col(Exchange.id) == kept.id, col(Exchange.fence) == kept.fence)
            .values(owner=None)
        )
        await tell(session, EXCHANGE, kept.id)


@dataclass(frozen=True, slots=True)
class Turned:
    """An exchange that this process drives and must look at: `withdrawn` says why its app wants
    no more of it; without that, another replica has it.
    """

    id: str
    withdrawn: str | None


async def turned(db: Database, lease: Lease, exchange_ids: Sequence[str]) -> list[Turned]:
    """Those of these exchanges that were taken away or withdrawn."""
    rows: list[Turned] = []
    async with db.reading() as session:
        for start in range(0, len(exchange_ids), _BATCH):
            found = await session.exec(
                select(Exchange.id, Exchange.owner, Exchange.withdrawn).where(
                    col(Exchange.id).in_(exchange_ids[start : start + _BATCH]),
                    or_(
                        col(Exchange.owner).is_(None),
                        col(Exchange.owner) != lease.id,
                        col(Exchange.withdrawn).is_not(None),
                    ),
                )
            )
            rows += [
                Turned(name, withdrawn if owner == lease.id else None)
                for name, owner, withdrawn in found.all()
            ]
    return rows


async def attend(
    db: Database, lease: Lease, exchange_ids: Collection[str], *, left_at: datetime | None
) -> None:
    """Note since when nobody waits for these exchanges; None: somebody does."""
    async with db.transaction() as session:
        await session.exec(
            update(Exchange)
            .where(col(Exchange.id).in_(list(exchange_ids)), col(Exchange.owner) == lease.id)
            .values(left_at=left_at)
        )


async def miss(db: Database, exchange_id: str) -> None:
    """Somebody waits for an open exchange at another replica than its owner."""
    async with db.transaction() as session:
        await session.exec(
            update(Exchange)
            .where(col(Exchange.id) == exchange_id, col(Exchange.state).in_(OPEN))
            .values(left_at=func.coalesce(col(Exchange.left_at), utc_now()))
        )


async def withdraw(db: Database, exchange_id: str, why: str) -> None:
    """Tell the owner of an open exchange that its app wants no more of it."""
    async with db.transaction() as session:
        await session.exec(
            update(Exchange)
            .where(col(Exchange.id) == exchange_id, col(Exchange.state).in_(OPEN))
            .values(withdrawn=why)
        )
        await tell(session, EXCHANGE, exchange_id)


async def withdrawn(db: Database, exchange_id: str) -> str | None:
    """Why the app wants no more of it, if it does not."""
    async with db.reading() as session:
        found = await session.exec(select(Exchange.withdrawn).where(Exchange.id == exchange_id))
        return found.first()


# --- asked for again ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sought:
    """What a repeated request is known by. `key` is the digest of its idempotency key."""

    app_id: str
    body_digest: str
    key: str | None
    is_retry: bool


@dataclass(frozen=True, slots=True)
class Alike:
    """An exchange for the same request, wherever it is driven. `attended`: somebody waits for it,
    as far as its owner has noticed, or need not.
    """

    id: str
    fence: int
    body_digest: str | None
    state: str
    alive: bool
    attended: bool


async def alike(db: Database, lease: Lease, sought: Sought, since: datetime) -> Alike | None:
    """The newest exchange of the app for this request that is open, or ended after `since` with
    an answer that was kept.
    """
    # What failed before anybody was asked is tried again, not heard again.
    asked = exists().where(col(ApprovalRequest.exchange_id) == Exchange.id)
    kept = or_(col(Exchange.final).is_not(None), col(Exchange.log).is_not(None))
    over = kept & (col(Exchange.finished_at) > since) & (or_(Exchange.state != "failed", asked))
    known = (
        col(Exchange.idempotency) == sought.key
        if sought.key is not None
        else col(Exchange.body_digest) == sought.body_digest
    )
    query: Any = (
        select(Exchange.id, Exchange.fence, Exchange.body_digest, Exchange.state)
        .add_columns(
            lease.lives(func.coalesce(col(Exchange.owner), "")),
            or_(col(Exchange.left_at).is_(None), col(Exchange.background)),
        )
        .where(col(Exchange.app_id) == sought.app_id, known)
        .where(or_(col(Exchange.state).in_(OPEN), over))
        .order_by(col(Exchange.id).desc())
        .limit(1)
    )
    async with db.reading() as session:
        row = (await session.exec(query)).first()
    return None if row is None else Alike(*row)
