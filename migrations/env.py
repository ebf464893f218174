"""Runs migrations: one connection, one runner at a time, bounded waits, a transaction each."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.store import tables

_LOCK = 0x6761_7465  # any number, the same for every runner
_PATIENCE = ("SET lock_timeout = '10s'", "SET statement_timeout = '15min'")


def _migrate(connection: Connection) -> None:
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        for statement in _PATIENCE:
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
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


async def _online(url: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


asyncio.run(_online(context.config.attributes["url"]))
