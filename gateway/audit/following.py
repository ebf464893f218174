"""What a process that does not seal sees of the one that does.

Owns two questions: whether the newest head can follow what was seen before, and whether the
sequencer has stopped although it holds its seat (a paused process, a cut cable). Records that wait
for long, by the clock of the database, are the sign of that: it is deposed then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select

from gateway.audit import heads
from gateway.audit.sequencer import EPOCH
from gateway.audit.signing import Signer
from gateway.store.database import Database
from gateway.store.tables import metadata

PATIENCE = timedelta(seconds=5)
_RECORDS = metadata.tables["audit_records"]
_META = metadata.tables["meta"]
_STANDING = select(
    select(_META.c.value).where(_META.c.name == EPOCH).scalar_subquery().label("epoch"),
    select(func.min(_RECORDS.c.position))
    .where(_RECORDS.c.index.is_(None))
    .scalar_subquery()
    .label("waiting"),
    func.clock_timestamp().label("now"),
)


@dataclass(frozen=True, slots=True)
class _Stall:
    """The record that waits first, in which election, and since when we have seen it wait."""

    epoch: str | None
    waiting: int
    since: datetime


class Follower:
    """Looks at a PostgreSQL that another process seals; one look a second is plenty."""

    def __init__(self, database: Database, signer: Signer) -> None:
        self._database = database
        self._signer = signer
        self._stall: _Stall | None = None

    async def look(self) -> int | None:
        """The election to be ended because its sequencer has stopped, None while all is well.

        Raises `Unavailable` when the newest head cannot follow what this process has seen.
        """
        async with self._database.reading() as session:
            connection = await session.connection()
            head = await heads.newest(connection)
            await heads.check_remembered(connection, self._signer, 0 if head is None else head.size)
            standing = (await connection.execute(_STANDING)).one()
        if head is not None:
            heads.check_signed(head, self._signer)
            self._signer.remember(head.note)
        return self._stopped(standing.epoch, standing.waiting, standing.now)

    def _stopped(self, epoch: str | None, waiting: int | None, now: datetime) -> int | None:
        if waiting is None:
            self._stall = None
            return None
        stall = self._stall
        if stall is None or (stall.epoch, stall.waiting) != (epoch, waiting):
            self._stall = _Stall(epoch, waiting, now)
            return None
        return int(epoch or 0) if now - stall.since >= PATIENCE else None
