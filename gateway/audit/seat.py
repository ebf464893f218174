"""Who may sequence: one process at a time.

On SQLite a locked file beside the database, on PostgreSQL an advisory lock on a connection of
its own. A seat is a hint that saves work; what keeps the ledger whole is the stored epoch, which
is checked inside every sealing transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database

_LOCK_NUMBER = 7_023_112_026  # any number that no other use of the database has


class Seat(Protocol):
    """Taken by one process at a time; freed by `leave`, and by the end of the process."""

    async def take(self) -> bool:
        """Try without waiting; true when it is ours now."""
        ...

    async def held(self) -> bool:
        """Whether it is still ours, as far as can be seen from here."""
        ...

    async def leave(self) -> None:
        """Give it up; nothing happens when it is not ours."""
        ...


def seat_for(database: Database) -> Seat:
    """The seat that fits the database."""
    if database.dialect == "sqlite":
        name = database.engine.url.database
        in_memory = not name or name == ":memory:"
        return FileSeat(None if in_memory else Path(str(name)).with_name("ledger.lock"))
    return AdvisorySeat(database)


class FileSeat:
    """An flock'ed file. The kernel frees it when the process ends, however it ends."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None

    async def take(self) -> bool:
        """See `Seat`. A database in memory belongs to this process anyway."""
        if self._path is None or self._file is not None:
            return True
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    async def held(self) -> bool:
        """See `Seat`."""
        return self._path is None or self._file is not None

    async def leave(self) -> None:
        """See `Seat`. The file stays: removing it would let two processes lock two files."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class AdvisorySeat:
    """A PostgreSQL session lock; it goes with its connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: AsyncConnection | None = None

    async def take(self) -> bool:
        """See `Seat`."""
        if self._connection is not None:
            return True
        connection = await self._database.engine.connect()
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        query = text("SELECT pg_try_advisory_lock(:number)")
        if await connection.scalar(query, {"number": _LOCK_NUMBER}):
            self._connection = connection
            return True
        await connection.close()
        return False

    async def held(self) -> bool:
        """See `Seat`."""
        if self._connection is None:
            return False
        try:
            await self._connection.scalar(text("SELECT 1"))
        except (SQLAlchemyError, OSError):
            await self.leave()
            return False
        return True

    async def leave(self) -> None:
        """See `Seat`. The connection is thrown away, so that the lock cannot stay in the pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, OSError):
                await connection.invalidate()
            await connection.close()
