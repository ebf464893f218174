"""The lease of one gateway among several: how long it may act without asking the others.

A row that is renewed by the clock of the database, and a file in the data directory that tells a
process which one it follows. A lease is a hint that saves work; what keeps two from acting is the
fence of each exchange.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, update
from sqlmodel import col, select

from gateway.store.database import Database, compare_and_set
from gateway.store.ids import new_id
from gateway.store.notifications import EXCHANGE, tell
from gateway.store.tables import Replica
from gateway.telemetry import log, utc_now

LENGTH = timedelta(seconds=10)  # of a lease; a fifth of it lies between two beats
_FORGOTTEN = timedelta(hours=1)  # after it was last seen, the row of a dead replica goes
_PATIENCE = 5.0  # seconds for the database, of a process that ends
#: Runs on while a machine sleeps, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """One per process: its name among the replicas, and how long it may act without asking.

    On SQLite the locked file is the lease, which nobody loses.
    """

    def __init__(
        self, db: Database, length: timedelta = LENGTH, folder: Path | None = None
    ) -> None:
        self.id = new_id("rep", utc_now())
        self.shared = db.dialect == "postgresql"
        self.leaving = False
        self._db = db
        self.pause = length.total_seconds() / 5
        self._length = length
        self._claim = None if folder is None else _Claim(folder / "replica.lock")
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
        """Be one of the replicas from now on, in the place of the one that was here before."""
        gone = None if self._claim is None else self._claim.take(self.id)
        async with self._db.transaction() as session:
            if not self.shared:
                # The file is ours: whoever is named here is no more.
                await session.exec(delete(Replica).where(col(Replica.id) != self.id))
            elif gone is not None:
                await session.exec(delete(Replica).where(col(Replica.id) == gone))
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
        if self._claim is not None:
            self._claim.leave()
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


class _Claim:
    """A locked file that names the process whose data directory this is. The kernel unlocks it
    when that ends, however it ends: then whoever it names is no more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self, name: str) -> str | None:
        """Be named there; who was before, None where nobody was, or still is."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return None
        before = os.pread(file, 100, 0).decode(errors="replace")
        os.ftruncate(file, 0)
        os.pwrite(file, name.encode(), 0)
        self._file = file
        return before or None

    def leave(self) -> None:
        """Give it up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
