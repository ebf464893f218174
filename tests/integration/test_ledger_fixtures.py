"""The fixtures themselves: both databases are real, empty at first, and write durably."""

from __future__ import annotations

from sqlalchemy import text

from gateway.store.database import Database


async def test_database_is_empty_and_writable(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute(text("INSERT INTO meta (name, value) VALUES ('a', 'b')"))
    async with db.reading() as session:
        connection = await session.connection()
        assert (await connection.scalar(text("SELECT count(*) FROM meta"))) == 1


async def test_durability_settings(db: Database) -> None:
    query = "PRAGMA synchronous" if db.dialect == "sqlite" else "SHOW synchronous_commit"
    async with db.reading() as session:
        connection = await session.connection()
        assert (await connection.scalar(text(query))) in (2, "on")
