"""One clock for all replicas: the database's.

Deadlines and decisions are compared by whoever looks first, so everybody's time has to be one.
It is followed by its distance from the process's own clock, measured now and then; SQLite's
clock is the machine's, and needs none of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlmodel import func, select

from gateway.store.database import Database
from gateway.telemetry import log

_PAUSE = 10.0
_SLOW = timedelta(seconds=1)  # an answer that took longer says little about the time


class DatabaseClock:
    """Tells the database's time; call `adjust` before it matters, and `run` meanwhile."""

    def __init__(self, db: Database, own: Callable[[], datetime]) -> None:
        self._db = db
        self._own = own
        self._ahead = timedelta(0)
        self._known = db.dialect == "sqlite"

    def __call__(self) -> datetime:
        """The time, aware."""
        return self._own() + self._ahead

    async def adjust(self) -> None:
        """Measure how far the database is ahead of the process, to half a round trip."""
        if self._db.dialect == "sqlite":
            return
        async with self._db.reading() as session:
            await session.connection()  # the way there is not part of the question
            before = self._own()
            there: datetime = (await session.exec(select(func.clock_timestamp()))).one()
            took = self._own() - before
        if not self._known or timedelta(0) <= took <= _SLOW:
            self._ahead, self._known = there - (before + took / 2), True

    async def run(self) -> None:
        """Follow it, for ever. What cannot be asked now is as it was."""
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                await self.adjust()
            except Exception as error:
                log.warning("clock.not_adjusted", error=type(error).__name__)
