"""The embedded database's own connection: one trip per statement, and nothing lost by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from gateway.store import sqlite
from gateway.store.database import Database, open_database


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.sqlite3'}")
    async with database.connection() as connection:
        await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)"))
    yield database
    await database.close()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each trip to the connection's thread was for."""
    made: list[str] = []
    real = sqlite.Connection._execute

    async def counted(self, function, *args):
        made.append(str(args[0]).split()[0] if args else function.__name__)
        return await real(self, function, *args)

    monkeypatch.setattr(sqlite.Connection, "_execute", counted)
    return made


async def test_a_statement_is_one_trip(file: Database, trips: list[str]):
    async with file.connection() as connection:
        await connection.execute(text("INSERT INTO t (name) VALUES ('a'), ('b')"))
        rows = (await connection.execute(text("SELECT name FROM t ORDER BY id"))).all()
    assert [row.name for row in rows] == ["a", "b"]
    assert trips == ["BEGIN", "INSERT", "SELECT", "commit"]


async def test_counts_and_keys_are_told(file: Database):
    async with file.connection() as connection:
        first = await connection.execute(text("INSERT INTO t (name) VALUES ('a')"))
        assert first.lastrowid == 1
        many = [{"name": name} for name in "bcd"]
        await connection.execute(text("INSERT INTO t (name) VALUES (:name)"), many)
        changed = await connection.execute(text("UPDATE t SET name = name || '!' WHERE id > 1"))
        assert changed.rowcount == 3


async def insert_twice(file: Database) -> None:
    async with file.connection() as connection:
        await connection.execute(text("INSERT INTO t (name) VALUES ('a')"))
        await connection.execute(text("INSERT INTO t (name) VALUES ('a')"))


async def read_nothing(file: Database) -> None:
    async with file.connection() as connection:
        await connection.execute(text("SELECT nothing FROM nowhere"))


async def test_an_error_undoes_the_transaction(file: Database):
    with pytest.raises(IntegrityError):
        await insert_twice(file)
    with pytest.raises(OperationalError):
        await read_nothing(file)
    async with file.reading() as session:
        assert (await (await session.connection()).execute(text("SELECT * FROM t"))).all() == []
