"""The ledger: the one way to write rows and audit records, and to wait for the signed head.

On one PostgreSQL several processes write and wait; one of them seals, the others follow it and
take its place when it stops. On SQLite there is one process.

Promises. `transaction` and `append_all` are durable when they return: rows and records together
or neither. `sealed` returns only once a signed head covers the records; when sealing fails it
raises `Unavailable`, so that nothing is released. A disk I/O error is never retried: it is
raised out of `run`, and the process must end without acknowledging anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Table, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.following import Follower
from gateway.audit.heads import BROKEN
from gateway.audit.inserts import Inserts
from gateway.audit.records import SYSTEM, Record, make, timestamp
from gateway.audit.seat import seat_for
from gateway.audit.sequencer import Sequencer, Stale
from gateway.audit.signing import Signer
from gateway.audit.waiting import Receipt, Waiting, late
from gateway.audit.writer import Writer
from gateway.errors import Conflict, GatepassError, Unavailable
from gateway.store.database import Database, is_disk_error
from gateway.store.notifications import RECORDED, SEALED, Notifications
from gateway.store.tables import metadata
from gateway.telemetry import Clock, log

HEARTBEAT = timedelta(minutes=5)
_PATIENCE = 30.0  # seconds that `settle` waits at most
_MEMORY = 1.0  # seconds between signed heads that outlive this process otherwise than in the rows
_GLANCE = 0.05  # seconds between looks at what another process seals
_ASIDE = 3  # looks that a sequencer leaves to the others before it stands again
_RECORDS = metadata.tables["audit_records"]

__all__ = ["Ledger", "Receipt", "Transaction"]


class Transaction:
    """Rows through `session`, records through `record`: one commit for both."""

    def __init__(self, ledger: Ledger, session: AsyncSession) -> None:
        self._ledger = ledger
        self.session = session
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Write `record` when the transaction commits."""
        self.records.append(record)

    async def sealed(self) -> Receipt | None:
        """After the transaction: wait until a signed head covers its records."""
        # Records of one transaction get their places in order: the last one's covers them all.
        return await self._ledger.sealed([record.id for record in self.records[-1:]], fresh=True)


class Ledger:
    """Writes, and runs the group committer and the sequencer while `run` is running."""

    def __init__(
        self,
        db: Database,
        signer: Signer,
        clock: Clock,
        *,
        poll: float = 1.0,
        notifications: Notifications | None = None,
    ) -> None:
        self.db = db
        self.signer = signer
        self.problem: str | None = None
        self.ready = asyncio.Event()
        self._clock = clock
        self._poll = poll
        self._shared = db.dialect == "postgresql"
        self._inserts = Inserts(db.engine.dialect)
        self._writer = Writer(db)
        self._sequencer = Sequencer(db, signer, clock, seat_for(db))
        self._follower = Follower(db, signer)
        self._waiting = Waiting(db)
        self._notifications = notifications or Notifications(db)
        self._notifications.on(RECORDED, self._hear_of_records)
        self._notifications.on(SEALED, lambda _: self._waiting.look_soon())
        self._wake = asyncio.Event()
        self._recorded = False  # something that the sequencer should hear of
        self._next_look = self._next_election = float("-inf")
        self._settling = asyncio.Lock()
        self._running = False
        self._broken: Unavailable | None = None
        self._fatal: BaseException | None = None
        self._beaten: datetime | None = None

    @property
    def healthy(self) -> bool:
        """Whether records can be written and sealed, as far as is known."""
        return self.problem is None

    @property
    def elected(self) -> bool:
        """Whether this process is the one that seals."""
        return self._sequencer.elected

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One writing transaction for rows and records; committed on leaving.

        Raises `Conflict` when one of the records stands already.
        """
        try:
            async with self.db.transaction() as session:
                transaction = Transaction(self, session)
                yield transaction
                if transaction.records:
                    await self._insert(session, transaction.records)
        except DBAPIError as error:
            self._note_disk_error(error)
            raise
        if transaction.records:
            self._stir()

    async def append_all(
        self, records: Sequence[Record], rows: Sequence[tuple[Table, Mapping[str, Any]]] = ()
    ) -> None:
        """Write rows and records together with those of other callers, in one commit.

        Returns when durable, not when signed: they are sealed within a second. Raises `Conflict`
        or `Unavailable`; nothing of this call is written then.
        """
        await self._writer.append(records, rows)

    async def sealed(self, record_ids: Sequence[str], *, fresh: bool = False) -> Receipt | None:
        """Wait until a signed head covers these committed records; None without any.

        `fresh` says that they were committed a moment ago. Raises `Unavailable` when they cannot
        be sealed now; they stay committed and are sealed later, but the caller must not act.
        """
        if not record_ids:
            return None
        if not self._running:
            await self.settle()
        elif self._broken is not None:
            raise self._broken
        self._stir()
        receipts = await self._waiting.wait(record_ids, fresh=fresh and self._running)
        last = max(receipts, key=lambda receipt: receipt.index)
        return Receipt(last.index, max(receipt.size for receipt in receipts))

    async def run(self) -> None:
        """Group committer and sequencer; ends only by cancellation or by a fatal error.

        A second process on the same SQLite file is refused with `Unavailable`.
        """
        self._running = True
        try:
            async with self._settling:
                await self._take_place()
            self.ready.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                group.create_task(self._sequence())
                group.create_task(self._remember())
                group.create_task(self._waiting.run(self._pause))
        finally:
            self._running = False
            self._waiting.fail("The gateway is stopping.")
            await self._sequencer.resign()

    async def settle(self) -> None:
        """Have everything that is committed now sealed: by us, or by the process that seals.

        For commands that run beside a server or without one, and for whatever must not rest on
        what is not signed. Raises `Unavailable`.
        """
        newest = await self._newest()
        try:
            async with asyncio.timeout(_PATIENCE), self._settling:
                while not await self._is_placed(newest):
                    if self._running:
                        if self._broken is not None:
                            raise self._broken
                        self._stir()
                    elif await self._seal_once_elected():
                        return
                    await asyncio.sleep(_GLANCE)
        except TimeoutError:
            raise late() from None

    async def _seal_once_elected(self) -> bool:
        try:
            if not await self._sequencer.elect(announce=False):
                await self._notifications.send(RECORDED)
                return False
            await self._seal_all()
        except GatepassError as error:
            self.problem = error.message
            raise
        finally:
            await self._sequencer.resign()
        return True

    async def _take_place(self) -> None:
        for _ in range(100):  # a command beside us may be settling: give it five seconds
            try:
                if await self._stand() or self._shared:
                    return
            except Unavailable as error:
                self._note_problem(error)
                return
            await asyncio.sleep(_GLANCE)
        raise Unavailable(
            "Another gateway is running on this database. Stop it first: one process at a time.",
            code="ledger_locked",
        )

    async def _sequence(self) -> None:
        while True:
            try:
                await self._turn()
            except Stale as error:
                # Another process seals now, and what is awaited here as well.
                log.warning("ledger_sequencer_deposed", problem=error.message)
                await self._step_down()
            except Exception as error:
                self._note_problem(error)
                await self._step_down()
            if self._fatal is not None:
                raise self._fatal
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which may swallow a cancellation that meets the event.
                async with asyncio.timeout_at(self._next_look):
                    await self._wake.wait()
            self._wake.clear()

    async def _step_down(self) -> None:
        if self._shared:  # another process may be able to, or does so already without the seat
            self._next_election = asyncio.get_running_loop().time() + _ASIDE * self._poll
        await self._sequencer.resign()

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(_MEMORY)
            await self._sequencer.keep()

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        look = now >= self._next_look  # not at every wake-up
        if look:
            self._next_look = now + self._poll
        if not self._sequencer.elected:
            await self._follow(look=look)
        if self._sequencer.elected:
            await self._lead(look=look)
        # While others are given time, perhaps nobody seals: what is wrong stays said.
        if self._sequencer.elected or (look and now >= self._next_election):
            self.problem = self._broken = None

    async def _lead(self, *, look: bool) -> None:
        if look:
            await self._sequencer.sit()
        await self._seal_all()
        await self._beat()

    async def _follow(self, *, look: bool) -> None:
        if look:
            await self._stand()
        if self._recorded and not self._sequencer.elected:
            self._recorded = False
            await self._notifications.send(RECORDED)

    async def _stand(self) -> bool:
        """Become the sequencer if there is none, or if the one there is has stopped."""
        stopped = await self._follower.look() if self._shared else None
        if stopped is None and asyncio.get_running_loop().time() < self._next_election:
            return False
        if not await self._sequencer.elect(announce=True, deposing=stopped):
            return False
        if self._shared:
            log.info("ledger_sequencer_elected", epoch=self._sequencer.epoch)
        self._beaten = self._clock()
        return True

    async def _seal_all(self) -> None:
        more = True
        while more and (sealed := await self._sequencer.seal()) is not None:
            self._waiting.publish(sealed.places, sealed.size)
            await self._notifications.send(SEALED, str(sealed.size))
            more = sealed.more

    def _stir(self) -> None:
        self._recorded = True
        self._wake.set()

    def _hear_of_records(self, _payload: str) -> None:
        if self._sequencer.elected:
            self._wake.set()

    def _pause(self) -> float:
        return self._poll if self._sequencer.elected else _GLANCE

    async def _beat(self) -> None:
        now = self._clock()
        if self._beaten is not None and now - self._beaten < HEARTBEAT:
            return
        epoch = self._sequencer.epoch
        record = make(
            "ledger.heartbeat",
            now=now,
            actor=SYSTEM,
            subject={},
            key=f"{epoch}:{timestamp(now)}",
            fields={"epoch": epoch},
        )
        await self._writer.append([record], ())
        self._beaten = now

    async def _insert(self, session: AsyncSession, records: list[Record]) -> None:
        try:
            await self._inserts.records(await session.connection(), records)
        except IntegrityError as error:
            raise Conflict("This is recorded already.", code="already_recorded") from error

    def _note_problem(self, error: Exception) -> None:
        match error:
            case GatepassError():
                sentence, details = error.message, None
                if isinstance(error, Unavailable) and error.code == BROKEN:
                    self._broken = error
            case _:
                sentence = f"The ledger cannot be sealed: {type(error).__name__}."
                details = error
        if isinstance(error, DBAPIError):
            self._note_disk_error(error)
        if self.problem != sentence:
            log.error("ledger_not_sealed", problem=sentence, exc_info=details)
        self.problem = sentence
        self._waiting.fail(sentence)

    def _note_disk_error(self, error: DBAPIError) -> None:
        if error.orig is not None and is_disk_error(error.orig):
            self._fatal = error
            self.problem = "The disk failed while the ledger was written."
            self._wake.set()

    async def _newest(self) -> int:
        async with self.db.reading() as session:
            connection = await session.connection()
            query = select(func.max(_RECORDS.c.position)).where(_RECORDS.c.index.is_(None))
            return await connection.scalar(query) or 0

    async def _is_placed(self, newest: int) -> bool:
        query = (
            select(_RECORDS.c.position)
            .where(_RECORDS.c.index.is_(None), _RECORDS.c.position <= newest)
            .limit(1)
        )
        async with self.db.reading() as session:
            connection = await session.connection()
            return (await connection.execute(query)).first() is None
