"""The group-committing writer: many requests, one commit.

Owns the queue of what waits to be written outside of business transactions. Never signs
anything and never says that something is written before the database did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from gateway.audit.inserts import Inserts, Row
from gateway.audit.records import Record
from gateway.errors import Conflict, Unavailable
from gateway.store.database import Database, is_disk_error

_MOST = 512


class Submission(NamedTuple):
    """What one caller wants written, and how it is told."""

    records: Sequence[Record]
    rows: Sequence[Row]
    done: asyncio.Future[None]


class Writer:
    """`append` queues, `run` commits; without `run` each append is a commit of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._inserts = Inserts(database.engine.dialect)
        self._queue: list[Submission] = []
        self._queued = asyncio.Event()
        self._running = False

    async def append(self, records: Sequence[Record], rows: Sequence[Row]) -> None:
        """Write rows and records in one transaction; durable when it returns.

        A row whose key stands already is left as it is: the first one counts.
        Raises `Conflict` when a record stands already, `Unavailable` when the database cannot
        write; nothing of this call is written then.
        """
        done = asyncio.get_running_loop().create_future()
        submission = Submission(records, rows, done)
        if not self._running:
            await self._commit([submission])
        else:
            self._queue.append(submission)
            self._queued.set()
        await done

    async def run(self) -> None:
        """Commit what is queued until cancelled. A disk error is raised, to end the process."""
        self._running = True
        try:
            while True:
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    batch, self._queue = self._queue[:_MOST], self._queue[_MOST:]
                    await self._commit(batch)
        finally:
            self._running = False
            _fail(self._queue, Unavailable("The gateway is stopping."))
            self._queue = []

    async def _commit(self, batch: list[Submission]) -> None:
        try:
            await self._write(batch)
        except (IntegrityError, ValueError, TypeError, KeyError) as error:
            await self._separate(batch, error)
        except (SQLAlchemyError, OSError) as error:
            _fail(batch, Unavailable("The audit ledger cannot be written."))
            if _is_disk_error(error):
                raise  # what was written before may be lost too: the process must end
        except BaseException:
            _fail(batch, Unavailable("The gateway is stopping."))
            raise
        else:
            for submission in batch:
                if not submission.done.done():
                    submission.done.set_result(None)

    async def _write(self, batch: list[Submission]) -> None:
        rows = [row for submission in batch for row in submission.rows]
        records = [record for submission in batch for record in submission.records]
        async with self._database.connection() as connection:
            if rows:
                await self._inserts.rows(connection, rows)
            if records:
                await self._inserts.records(connection, records)

    async def _separate(self, batch: list[Submission], error: Exception) -> None:
        # One caller repeats what stands already, or wants what cannot be: the others must not
        # suffer for it.
        if len(batch) == 1:
            repeated = Conflict("This is recorded already.", code="already_recorded")
            _fail(batch, repeated if isinstance(error, IntegrityError) else error)
            return
        for submission in batch:
            await self._commit([submission])


def _fail(batch: list[Submission], error: Exception) -> None:
    for submission in batch:
        if not submission.done.done():
            submission.done.set_exception(error)


def _is_disk_error(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and error.orig is not None and is_disk_error(error.orig)
