"""Tells whoever waits that something was decided.

A hint, never the truth: whoever is woken reads the database. In this process a wake-up is
immediate; decisions of other processes (the command line, another replica) are found by one
small query per half second, however many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable

from sqlmodel import col, func, select

from gateway.store.database import Database
from gateway.store.tables import ApprovalRequest
from gateway.telemetry import log

_PAUSE = 0.5
_BATCH = 500


class Wakeups:
    """One per process; `run` belongs into the process's task group."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._changed = asyncio.Condition()
        self._version = 0
        self._fingerprint: object = None
        self._newly: set[str] = set()  # waited for since the last look

    async def wait(self, approval_ids: Iterable[str], seconds: float) -> None:
        """Return when one of these may have changed, or after `seconds`."""
        event = asyncio.Event()
        ids = list(approval_ids)
        for approval_id in ids:
            self._waiting[approval_id].add(event)
        self._newly.update(ids)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            for approval_id in ids:
                self._waiting[approval_id].discard(event)
                if not self._waiting[approval_id]:
                    del self._waiting[approval_id]

    async def notify(self, approval_ids: Iterable[str] = ()) -> None:
        """Something about these requests was committed."""
        for approval_id in approval_ids:
            for event in self._waiting.get(approval_id, ()):
                event.set()
        async with self._changed:
            self._version += 1
            self._changed.notify_all()

    async def changes(self, after: int, seconds: float) -> int:
        """A number that has grown past `after` when any request changed, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._version > after)
        return self._version

    async def run(self) -> None:
        """Look for what other processes have decided, for ever."""
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                await self._look()
            except Exception as error:
                log.warning("wakeups.look_failed", error=type(error).__name__)
                self._fingerprint = None  # whatever was missed: all of them, next time

    async def _look(self) -> None:
        decided: list[str] = []
        async with self._db.reading() as session:
            newest = await session.exec(
                select(
                    func.max(col(ApprovalRequest.id)),
                    func.max(col(ApprovalRequest.decided_at)),
                    select(func.count())
                    .where(ApprovalRequest.state == "pending")
                    .scalar_subquery(),
                )
            )
            fingerprint = tuple(newest.one())
            # One that has begun to wait may have been decided just before: it is looked at once.
            newly, self._newly = self._newly, set()
            ids = list(newly if fingerprint == self._fingerprint else self._waiting)
            for start in range(0, len(ids), _BATCH):
                rows = await session.exec(
                    select(ApprovalRequest.id).where(
                        col(ApprovalRequest.id).in_(ids[start : start + _BATCH]),
                        ApprovalRequest.state != "pending",
                    )
                )
                decided += rows.all()
        if decided or fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            await self.notify(decided)
