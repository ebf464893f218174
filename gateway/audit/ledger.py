"""The ledger: the one way to write rows and audit records, and to wait for the signed head.

Promises. `transaction` and `append_all` are durable when they return: rows and records together
or neither. `sealed` returns only once a signed head covers the records; when sealing fails it
raises `Unavailable`, so that nothing is released. A disk I/O error is never retried: it is
raised out of `run`, and the process must end without acknowledging anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Table, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.inserts import Inserts
from gateway.audit.records import SYSTEM, Record, make, timestamp
from gateway.audit.seat import seat_for
from gateway.audit.sequencer import Sealed, Sequencer
from gateway.audit.signing import Signer
from gateway.audit.writer import Writer
from gateway.errors import Conflict, GatepassError, Unavailable
from gateway.store.database import Database, is_disk_error
from gateway.store.tables import metadata
from gateway.telemetry import Clock, log

HEARTBEAT = timedelta(minutes=5)
_PATIENCE = 30.0  # seconds that `sealed` waits at most
_RECENT = 4096  # receipts kept for callers that ask just after the sealing
_MEMORY = 1.0  # seconds between signed heads that outlive this process otherwise than in the rows
_GLANCE = 0.05  # seconds between looks at what another process seals
_RECORDS = metadata.tables["audit_records"]
_HEADS = metadata.tables["audit_checkpoints"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where records stand: the index of the last of them, and the size of a covering head."""

    index: int
    size: int

    def __str__(self) -> str:
        return f"{self.index}@{self.size}"


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

    def __init__(self, db: Database, signer: Signer, clock: Clock, *, poll: float = 1.0) -> None:
        self.db = db
        self.signer = signer
        self.problem: str | None = None
        self._clock = clock
        self._poll = poll
        self._inserts = Inserts(db.engine.dialect)
        self._writer = Writer(db)
        self._sequencer = Sequencer(db, signer, clock, seat_for(db))
        self._awaited: dict[str, asyncio.Future[Receipt | Unavailable]] = {}
        self._wake = asyncio.Event()
        self._recent: dict[str, Receipt] = {}
        self._settling = asyncio.Lock()
        self.ready = asyncio.Event()
        self._running = False
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
            self._wake.set()

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
        receipts = await self._wait(list(record_ids), fresh=fresh and self._running)
        last = max(receipts, key=lambda receipt: receipt.index)
        return Receipt(last.index, max(receipt.size for receipt in receipts))

    async def run(self) -> None:
        """Group committer and sequencer; ends only by cancellation or by a fatal error.

        A second process on the same database is refused with `Unavailable`.
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
        finally:
            self._running = False
            self._fail("The gateway is stopping.")
            await self._sequencer.resign()

    async def settle(self) -> None:
        """Have everything that is committed now sealed: by us, or by the process that seals.

        For commands that run beside a server or without one. Raises `Unavailable`.
        """
        newest = await self._newest()
        try:
            async with asyncio.timeout(_PATIENCE), self._settling:
                while not await self._is_placed(newest):
                    if self._running:
                        self._wake.set()
                    elif await self._seal_once_elected():
                        return
                    await asyncio.sleep(_GLANCE)
        except TimeoutError:
            raise _late() from None

    async def _seal_once_elected(self) -> bool:
        try:
            if not await self._sequencer.elect(announce=False):
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
                if await self._sequencer.elect(announce=True):
                    self._beaten = self._clock()
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
            except Exception as error:
                self._note_problem(error)
                await self._sequencer.resign()
            if self._fatal is not None:
                raise self._fatal
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which may swallow a cancellation that meets the event.
                async with asyncio.timeout(self._poll):
                    await self._wake.wait()
            self._wake.clear()

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(_MEMORY)
            await self._sequencer.keep()

    async def _turn(self) -> None:
        if not self._sequencer.elected:
            if not await self._sequencer.elect(announce=True):
                self.problem = None
                return
            self._beaten = self._clock()
        await self._beat()
        await self._seal_all()
        self.problem = None

    async def _seal_all(self) -> None:
        more = True
        while more and (sealed := await self._sequencer.seal()) is not None:
            self._release(sealed)
            more = sealed.more

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

    def _release(self, sealed: Sealed) -> None:
        receipts = {name: Receipt(at, sealed.size) for name, at in sealed.places.items()}
        if len(self._recent) > _RECENT:
            self._recent.clear()
        self._recent |= receipts
        self._publish(receipts)

    def _fail(self, sentence: str) -> None:
        awaited, self._awaited = self._awaited, {}
        for future in awaited.values():
            if not future.done():
                future.set_result(Unavailable(sentence, code="ledger_unavailable"))

    def _note_problem(self, error: Exception) -> None:
        match error:
            case GatepassError():
                sentence, details = error.message, None
            case _:
                sentence = f"The ledger cannot be sealed: {type(error).__name__}."
                details = error
        if isinstance(error, DBAPIError):
            self._note_disk_error(error)
        if self.problem != sentence:
            log.error("ledger_not_sealed", problem=sentence, exc_info=details)
        self.problem = sentence
        self._fail(sentence)

    def _note_disk_error(self, error: DBAPIError) -> None:
        if error.orig is not None and is_disk_error(error.orig):
            self._fatal = error
            self.problem = "The disk failed while the ledger was written."
            self._wake.set()

    async def _wait(self, names: list[str], *, fresh: bool) -> list[Receipt]:
        loop = asyncio.get_running_loop()
        found = {name: self._recent[name] for name in names if name in self._recent}
        if not fresh:
            found |= await self._look_up([name for name in names if name not in found])
        futures = {
            name: self._awaited.setdefault(name, loop.create_future())
            for name in names
            if name not in found
        }
        self._wake.set()
        give_up = loop.time() + _PATIENCE
        while not all(future.done() for future in futures.values()):
            if loop.time() > give_up:
                raise _late()
            glance = self._poll if self._sequencer.elected else _GLANCE
            _, waiting = await asyncio.wait(futures.values(), timeout=glance)
            if waiting:
                self._publish(await self._look_up(list(futures)))
        return [*found.values(), *(_receipt(future.result()) for future in futures.values())]

    def _publish(self, found: dict[str, Receipt]) -> None:
        for record_id, receipt in found.items():
            future = self._awaited.pop(record_id, None)
            if future is not None and not future.done():
                future.set_result(receipt)

    async def _look_up(self, record_ids: list[str]) -> dict[str, Receipt]:
        if not record_ids:
            return {}
        query = select(_RECORDS.c.id, _RECORDS.c.index).where(
            _RECORDS.c.id.in_(record_ids), _RECORDS.c.index.is_not(None)
        )
        async with self.db.reading() as session:
            connection = await session.connection()
            rows = (await connection.execute(query)).all()
            size = await connection.scalar(select(func.max(_HEADS.c.size)))
        return {name: Receipt(place, size or place + 1) for name, place in rows}

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


def _receipt(result: Receipt | Unavailable) -> Receipt:
    match result:
        case Receipt():
            return result
        case _:
            raise result


def _late() -> Unavailable:
    return Unavailable("The ledger was not sealed in time.", code="ledger_unavailable")
