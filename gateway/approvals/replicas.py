"""Which of several gateways drives an exchange: leases by the database's clock, claims by fence.

A lease is a hint that saves work: whose it is says the row of the exchange, and every write about
an exchange names the fence of the claim it was made under. A replica that slept too long therefore
finds nothing that it may still do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, insert, update
from sqlmodel import col, or_, select

from gateway.approvals.kept import Kept
from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.notifications import EXCHANGE, tell
from gateway.store.tables import ApprovalRequest, Exchange, Replica
from gateway.telemetry import log, utc_now

OPEN = ("forwarding", "holding", "sending")
LENGTH = timedelta(seconds=10)  # of a lease; a fifth of it lies between two beats
_FORGOTTEN = timedelta(hours=1)  # after it was last seen, the row of a dead replica goes
_PATIENCE = 5.0  # seconds for the database, of a process that ends
_BATCH = 500
#: Runs on while a machine sleeps, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """One per process: its name among the replicas, and how long it may act without asking.

    On SQLite the locked file is the lease, which nobody loses.
    """

    def __init__(self, db: Database, length: timedelta = LENGTH) -> None:
        self.id = new_id("rep", utc_now())
        self.shared = db.dialect == "postgresql"
        self.leaving = False
        self._db = db
        self.pause = length.total_seconds() / 5
        self._length = length
        self._term = 0
        self._beaten = _seconds()

    @property
    def term(self) -> int:
        """Grows whenever the lease has lapsed: what was begun under another term may be lost."""
        return self._term

    def holds(self, term: int) -> bool:
        """Whether this process has had its lease without a gap since `term`. Asks nobody."""
        return not self.shared or (
            term == self._term and _seconds() - self._beaten < self._length.total_seconds()
        )

    async def join(self) -> None:
        """Be one of the replicas from now on."""
        if not self.shared:
            async with self._db.transaction() as session:
                # The file is ours: whoever is named here is no more.
                await session.exec(delete(Replica).where(col(Replica.id) != self.id))
        await self.beat()

    async def beat(self) -> None:
        """Say that this process lives."""
        begun, now = _seconds(), self._now()
        async with self._db.transaction() as session:
            mine = update(Replica).where(col(Replica.id) == self.id).values(seen_at=now)
            if await compare_and_set(session, mine) != 1:
                name = f"{socket.gethostname()}:{os.getpid()}"
                row = {"id": self.id, "name": name, "started_at": now, "seen_at": now}
                await session.exec(insert(Replica).values(**row))
        if begun - self._beaten >= self._length.total_seconds():
            self._term += 1
        self._beaten = begun

    async def run(self) -> None:
        """Beat for ever."""
        while self.shared:
            await asyncio.sleep(self.pause)
            try:
                await self.beat()
                await self._forget()
            except Exception as error:
                log.warning("lease.not_renewed", error=type(error).__name__)

    async def renewed(self) -> int:
        """The term, once the lease is surely held."""
        if not self.holds(self._term):
            await self.beat()
        return self._term

    async def leave(self) -> None:
        """Be no replica any more: what it owns is free at once, or when the lease has run out."""
        try:
            async with asyncio.timeout(_PATIENCE), self._db.transaction() as session:
                await session.exec(delete(Replica).where(col(Replica.id) == self.id))
                await tell(session, EXCHANGE)
        except Exception as error:
            log.warning("lease.not_left", error=type(error).__name__)

    async def alone(self) -> bool:
        """Whether no other replica lives."""
        async with self._db.reading() as session:
            found = await session.exec(self._living().where(col(Replica.id) != self.id).limit(1))
            return found.first() is None

    def lives(self, owner: Any) -> Any:
        """The condition that the replica of this id lives, by the database's clock."""
        return owner.in_(self._living())

    def _living(self) -> Any:
        living = select(Replica.id)
        if self.shared:
            living = living.where(col(Replica.seen_at) > self._ago(self._length))
        return living

    async def _forget(self) -> None:
        async with self._db.transaction() as session:
            await session.exec(delete(Replica).where(col(Replica.seen_at) < self._ago(_FORGOTTEN)))

    def _now(self) -> Any:
        # Not now(), which stands still within a transaction.
        return func.clock_timestamp() if self.shared else func.current_timestamp()

    def _ago(self, length: timedelta) -> Any:
        return func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, length.total_seconds())


def _seconds() -> float:
    return time.clock_gettime(_CLOCK)


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
