"""Who waits for the signed head: one future for each record, however many wait for it.

The sequencer's process publishes what it has sealed; elsewhere one query looks for all that is
awaited, whenever a hint says that a head was signed, and now and then without one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.tables import metadata
from gateway.telemetry import log

_PATIENCE = 30.0  # seconds that anybody waits at most
_RECENT = 4096  # receipts kept for callers that ask just after the sealing
_BATCH = 1000
_RECORDS = metadata.tables["audit_records"]
_HEADS = metadata.tables["audit_checkpoints"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where records stand: the index of the last of them, and the size of a covering head."""

    index: int
    size: int

    def __str__(self) -> str:
        return f"{self.index}@{self.size}"


class Waiting:
    """What is awaited in this process; `run` looks for it as long as the process lives."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._awaited: dict[str, asyncio.Future[Receipt | Unavailable]] = {}
        self._recent: dict[str, Receipt] = {}
        self._begun = asyncio.Event()
        self._due = asyncio.Event()

    async def wait(self, names: Sequence[str], *, fresh: bool) -> list[Receipt]:
        """The receipts of these records; `fresh` says that they were committed a moment ago."""
        found = {name: self._recent[name] for name in names if name in self._recent}
        if not fresh:
            found |= await self._look_up([name for name in names if name not in found])
        futures = [self._future(name) for name in names if name not in found]
        try:
            async with asyncio.timeout(_PATIENCE):
                # Shielded, for others may wait for the same record.
                results = [await asyncio.shield(future) for future in futures]
        except TimeoutError:
            raise late() from None
        return [*found.values(), *map(_receipt, results)]

    def publish(self, places: Mapping[str, int], size: int) -> None:
        """These records stand at these indexes, under a signed head of `size`."""
        receipts = {name: Receipt(at, size) for name, at in places.items()}
        if len(self._recent) > _RECENT:
            self._recent.clear()
        self._recent |= receipts
        self._tell(receipts)

    def fail(self, sentence: str) -> None:
        """Whoever waits now must not act."""
        awaited, self._awaited = self._awaited, {}
        for future in awaited.values():
            if not future.done():
                future.set_result(Unavailable(sentence, code="ledger_unavailable"))

    def look_soon(self) -> None:
        """Another process has signed a head."""
        if self._awaited:
            self._due.set()

    async def run(self, pause: Callable[[], float]) -> None:
        """Look for what is awaited: when told to, and after `pause` seconds."""
        while True:
            await self._begun.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause()):
                    await self._due.wait()
            self._due.clear()
            try:
                self._tell(await self._look_up(list(self._awaited)))
            except Exception as error:
                log.warning("ledger_not_read", error=type(error).__name__)
                await asyncio.sleep(pause())
            if not self._awaited:
                self._begun.clear()

    def _future(self, name: str) -> asyncio.Future[Receipt | Unavailable]:
        self._begun.set()
        known = self._awaited.get(name)
        if known is None:
            known = self._awaited[name] = asyncio.get_running_loop().create_future()
        return known

    def _tell(self, found: Mapping[str, Receipt]) -> None:
        for record_id, receipt in found.items():
            future = self._awaited.pop(record_id, None)
            if future is not None and not future.done():
                future.set_result(receipt)

    async def _look_up(self, record_ids: Sequence[str]) -> dict[str, Receipt]:
        found: dict[str, Receipt] = {}
        if not record_ids:
            return found
        async with self._db.reading() as session:
            connection = await session.connection()
            for start in range(0, len(record_ids), _BATCH):
                query = select(_RECORDS.c.id, _RECORDS.c.index).where(
                    _RECORDS.c.id.in_(record_ids[start : start + _BATCH]),
                    _RECORDS.c.index.is_not(None),
                )
                rows = (await connection.execute(query)).all()
                # After the places, so that it covers them.
                size = await connection.scalar(select(func.max(_HEADS.c.size))) if rows else 0
                found |= {name: Receipt(place, size or place + 1) for name, place in rows}
        return found


def late() -> Unavailable:
    """Nobody has sealed it for too long."""
    return Unavailable("The ledger was not sealed in time.", code="ledger_unavailable")


def _receipt(result: Receipt | Unavailable) -> Receipt:
    match result:
        case Receipt():
            return result
        case _:
            raise result
