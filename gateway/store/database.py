"""The engine, transactions, and the differences between SQLite and PostgreSQL.

Owns no table and no rule. Promises: `transaction()` is durable when it returns (SQLite
`synchronous=FULL`, PostgreSQL `synchronous_commit=on`), and serialised on SQLite, so that
compare-and-set there needs no retry; `reading()` never blocks a writer. Nobody waits for a lock,
or keeps one while doing nothing, for more than ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, DateTime, Update, event
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.errors import Unavailable
from gateway.store import sqlite

_POSTGRESQL = {
    "synchronous_commit": "on",  # whatever the server's default is: committed means durable
    # A process that was paused in a transaction must not hold up the others for ever.
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "10s",  # as long as SQLite's
    # A host that has gone without a word gives up its locks in half a minute, not in two hours.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
}


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes; SQLite, which keeps no zone, stores them without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


class Database:
    """One engine. Build it with `open_database`, close it with `close`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._writing = asyncio.Lock() if self.dialect == "sqlite" else None
        self._writer: AsyncConnection | None = None

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A writing Core connection in one transaction: for the hot path and the sequencer."""
        if self._writing is None:
            async with self.engine.begin() as connection:
                yield connection
            return
        async with self._writing:
            # One writer at a time: its connection need not travel through the pool.
            connection, self._writer = self._writer or await self._open_writer(), None
            try:
                async with connection.begin():
                    yield connection
            except BaseException:
                await connection.close()  # whatever state it is in
                raise
            self._writer = connection

    async def _open_writer(self) -> AsyncConnection:
        connection = await self.engine.connect()
        return await connection.execution_options(gatepass_writes=True)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One writing transaction: committed on leaving, rolled back on an exception."""
        async with self.connection() as connection:
            session = AsyncSession(
                bind=connection, expire_on_commit=False, join_transaction_mode="rollback_only"
            )
            async with session:
                yield session
                await session.flush()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one consistent state and writes nothing."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield session

    async def close(self) -> None:
        """Give every connection back."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()
        await self.engine.dispose()


async def compare_and_set(session: AsyncSession, statement: Update) -> int:
    """Run an UPDATE whose WHERE names the expected state; the number of rows that had it."""
    return (await session.exec(statement)).rowcount


def open_database(url: str) -> Database:
    """Make the engine for `url` (`sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`)."""
    # What a statement was given may be a payload: it stands in no error, and so in no log.
    options: dict[str, Any] = {"hide_parameters": True, "pool_pre_ping": False}
    if url.startswith("postgresql"):
        options |= {"pool_size": 20, "max_overflow": 20}
        options["connect_args"] = {"server_settings": _POSTGRESQL}
    elif url.startswith("sqlite"):
        options["connect_args"] = {"async_creator_fn": sqlite.connect}
        # Kept open: making a connection costs more than what most of them are used for.
        options |= {"pool_size": 16, "max_overflow": 0}
    engine = create_async_engine(url, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver must not open transactions of its own: _begin_sqlite says which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL survives a kill, not a power loss
        "foreign_keys=ON",
        "busy_timeout=10000",
        "secure_delete=FAST",  # wipes what is deleted wherever that costs no extra write
        "wal_autocheckpoint=8000",
        "cache_size=-65536",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("gatepass_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_disk_error(error: BaseException) -> bool:
    """Whether the database said that what it wrote may not have reached the disk."""
    return isinstance(error, sqlite3.OperationalError) and "disk I/O error" in str(error)


def outage(error: BaseException) -> Unavailable | None:
    """What whoever asked is told where the database could not answer; None for any other error."""
    match error:
        case OperationalError() | InterfaceError() | PoolTimeout() | ConnectionError():
            lost = True
        case DBAPIError():
            lost = error.connection_invalidated
        case _:
            lost = False
    if not lost:
        return None
    return Unavailable("The database does not answer; nothing was released. Try again.")
