"""Inserting many rows of one shape, past the object-relational layers: the hot path writes here.

A statement is compiled once for each shape and kept; what is left for each row is one tuple.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import Boolean, Dialect, LargeBinary, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit.records import Record
from gateway.store.database import UtcDateTime
from gateway.store.tables import metadata

Binder: TypeAlias = Callable[[Any], Any]
Row: TypeAlias = tuple[Table, Mapping[str, Any]]
_RECORDS = metadata.tables["audit_records"]
_COLUMNS = (
    "id", "leaf_hash", "body", "kind", "ts", "actor",
    "app", "server", "tool", "exchange", "approval",
)  # fmt: skip


class Statement:
    """One INSERT for rows with these columns; a row whose key stands already may be skipped."""

    def __init__(
        self, dialect: Dialect, table: Table, names: Sequence[str], *, skips: bool = False
    ) -> None:
        make = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[dialect.name]
        statement: Any = make(table).inline()
        if skips:
            statement = statement.on_conflict_do_nothing()
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        self.sql = str(compiled)
        self.names = tuple(compiled.positiontup)
        types = enumerate(table.c[name].type for name in self.names)
        self._bind = [(at, bind) for at, kind in types if (bind := binder(kind, dialect))]

    def row(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters of one row."""
        found = [values[name] for name in self.names]
        for at, bind in self._bind:
            found[at] = bind(found[at])
        return tuple(found)


class Inserts:
    """The statements of one dialect, compiled when they are first needed."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._kept: dict[tuple[str, tuple[str, ...]], Statement] = {}
        self._records = Statement(dialect, _RECORDS, _COLUMNS)
        if self._records.names != _COLUMNS:
            raise RuntimeError("the columns of a record stand in another order than `_values`")
        self._time = binder(_RECORDS.c.ts.type, dialect)

    async def records(self, connection: AsyncConnection, records: Sequence[Record]) -> None:
        """Insert records without a place, inside the caller's transaction."""
        rows = [_values(record, self._time) for record in records]
        await connection.exec_driver_sql(self._records.sql, rows)

    async def rows(self, connection: AsyncConnection, rows: Sequence[Row]) -> None:
        """Insert rows of any tables; a row whose key stands already is left as it is."""
        grouped: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
        for row in rows:
            grouped.setdefault((row[0].name, tuple(row[1])), []).append(row)
        for shape, alike in grouped.items():
            statement = self._kept.get(shape)
            if statement is None:
                statement = Statement(self._dialect, alike[0][0], shape[1], skips=True)
                self._kept[shape] = statement
            values = [statement.row(row) for _, row in alike]
            await connection.exec_driver_sql(statement.sql, values)


def _values(record: Record, time: Binder | None) -> tuple[Any, ...]:
    body, ts, subject = record.body, record.ts, record.subject.get
    return (
        record.id,
        hashlib.sha256(b"\x00" + body).digest(),
        body,
        record.kind,
        ts if time is None else time(ts),
        record.actor,
        subject("app"),
        subject("server"),
        subject("tool"),
        subject("exchange"),
        subject("approval"),
    )


def binder(kind: Any, dialect: Dialect) -> Binder | None:
    """How a value is handed to the driver; None when the driver takes it as it is."""
    match kind:
        case UtcDateTime():
            return _sqlite_time if dialect.name == "sqlite" else _aware
        case LargeBinary() | Boolean():
            return None
        case _:
            bind: Binder | None = kind.dialect_impl(dialect).bind_processor(dialect)
            return bind


def _aware(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError("naive datetime")
    return moment


def _sqlite_time(moment: datetime | None) -> str | None:
    # As SQLAlchemy writes it, several times as fast.
    moment = _aware(moment)
    return None if moment is None else moment.astimezone(UTC).isoformat(" ", "microseconds")[:26]
