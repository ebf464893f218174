"""Runs migrations: one connection, one runner at a time, bounded waits, a transaction each."""

import asyncio

from alembic import context
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.store import migration, tables

_LOCK = 0x6761_7465  # any number, the same for every runner


def _migrate(connection: Connection) -> None:
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        patience = int(migration.LOCK_PATIENCE * 1000)
        for statement in (f"SET lock_timeout = {patience}", "SET statement_timeout = '15min'"):
            connection.execute(text(statement))
        # Of the session, so that it outlives the transaction of each migration.
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        render_as_batch=not postgresql,
        compare_type=True,
        transaction_per_migration=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        return create_async_engine(url)
    engine = create_async_engine(url, connect_args={"timeout": migration.LOCK_PATIENCE})
    # The driver opens a transaction for changed rows only, so that a process that dies would
    # leave half of a changed schema behind. Here every statement is in one.
    event.listen(engine.sync_engine, "connect", _leave_transactions_to_us)
    event.listen(engine.sync_engine, "begin", lambda it: it.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _leave_transactions_to_us(connection: object, _: object) -> None:
    connection.isolation_level = None


async def _online(url: str) -> None:
    engine = _engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


asyncio.run(_online(context.config.attributes["url"]))
