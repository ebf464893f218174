"""Tells whoever waits that something was decided.

A hint, never the truth: whoever is woken reads the database. In this process a wake-up is
immediate, and so it is for other processes on one PostgreSQL; whatever they did not hear of is
found by one small query per half second, however many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable

from sqlmodel import col, func, select

from gateway.store.database import Database
from gateway.store.notifications import DECIDED, Notifications
from gateway.store.tables import ApprovalRequest
from gateway.telemetry import log

_PAUSE = 0.5
_BATCH = 500
_NOBODY = "-"  # pages are to look again, and nobody who waits for a decision


class Wakeups:
    """One per process; `run` belongs into the process's task group."""

    def __init__(self, db: Database, notifications: Notifications | None = None) -> None:
        self._db = db
        self._notifications = notifications or Notifications(db)
        self._notifications.on(DECIDED, self._hear)
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._changed = asyncio.Event()  # another one for each change
        self._due = asyncio.Event()
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
        """Something about these requests was committed: wake who waits, here and elsewhere."""
        ids = list(approval_ids)
        self._wake(ids)
        await self._notifications.send(DECIDED, ",".join(ids) or _NOBODY)

    async def changes(self, after: int, seconds: float) -> int:
        """A number that has grown past `after` when any request changed, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._version <= after:
                    await self._changed.wait()
        return self._version

    async def run(self) -> None:
        """Look for what other processes have decided, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._look()
            except Exception as error:
                log.warning("wakeups.look_failed", error=type(error).__name__)
                self._fingerprint = None  # whatever was missed: all of them, next time
                await asyncio.sleep(_PAUSE)

    def _hear(self, payload: str) -> None:
        if payload:
            self._wake(payload.split(","))
        else:
            self._fingerprint = None
            self._due.set()

    def _wake(self, ids: Iterable[str]) -> None:
        for approval_id in ids:
            for event in self._waiting.get(approval_id, ()):
                event.set()
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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
            self._wake(decided)
