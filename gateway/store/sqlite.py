"""The embedded database's connection: one trip to its thread per statement.

aiosqlite runs every step of a cursor (make, execute, fetch, close) as a trip of its own to the
connection's thread, and a trip costs more than most statements here. This connection does the
four in one. Results are read whole; nothing here streams.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import aiosqlite


class Connection(aiosqlite.Connection):
    """An aiosqlite connection whose cursors travel once."""

    def cursor(self) -> Cursor:  # type: ignore[override]  # ready at once, nothing to await
        """A cursor; it exists in the connection's thread only while a statement runs."""
        return Cursor(self)

    async def run(self, sql: str, parameters: Any, *, many: bool) -> _Result:
        """One statement in the connection's thread, its rows and all."""
        trip = self._execute(self._run, sql, parameters, many)  # type: ignore[no-untyped-call]
        result: _Result = await trip
        return result

    def _run(self, sql: str, parameters: Any, many: bool) -> _Result:
        execute = self._conn.executemany if many else self._conn.execute
        cursor = execute(sql, parameters)
        rows = cursor.fetchall() if cursor.description else []
        result = _Result(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
        cursor.close()
        return result


class _Result:
    __slots__ = ("description", "lastrowid", "rowcount", "rows")

    def __init__(
        self, description: Any, rowcount: int, lastrowid: int | None, rows: list[Any]
    ) -> None:
        self.description = description
        self.rowcount = rowcount
        self.lastrowid = lastrowid
        self.rows = rows


class Cursor:
    """What SQLAlchemy asks of an asynchronous cursor."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._result = _Result(None, -1, None, [])

    async def __aenter__(self) -> Cursor:
        return self

    @property
    def description(self) -> Any:
        """Names of the columns, None when there are no rows."""
        return self._result.description

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        return self._result.rowcount

    @property
    def lastrowid(self) -> int | None:
        """The key of the row inserted last."""
        return self._result.lastrowid

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run one statement."""
        self._result = await self._connection.run(sql, parameters, many=False)
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Cursor:
        """Run one statement for each of the parameters."""
        self._result = await self._connection.run(sql, parameters, many=True)
        return self

    async def fetchall(self) -> list[Any]:
        """All rows; the second time none."""
        rows, self._result.rows = self._result.rows, []
        return rows

    async def close(self) -> None:
        """Nothing is left open."""


def connect(database: str, **options: Any) -> Connection:
    """What SQLAlchemy calls for a new connection; await it to open."""
    connection = Connection(lambda: sqlite3.connect(database, **options), 64)
    # As SQLAlchemy does for its own: a connection left open must not keep the process alive.
    connection._thread.daemon = True
    return connection
