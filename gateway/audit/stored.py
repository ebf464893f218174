"""Rows of the ledger as they really stand, whatever their columns hold.

SQLite keeps a value of any type in any column, text that is no text among it; the usual mapping
would fail on those. Here a value of another type than its column's reads as None, and 0 for a text,
where None has a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement, LargeBinary, Select, Table, case, cast, func, select
from sqlalchemy import Row as Fetched
from sqlalchemy.sql.expression import type_coerce
from sqlalchemy.types import Integer, NullType

from gateway.audit.records import timestamp
from gateway.store.database import UtcDateTime

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)
Stored: TypeAlias = Mapping[str, Any]


def select_stored(table: Table, dialect: str) -> Select[Any]:
    """SELECT every column of `table`; give the rows to `stored`."""
    raw = _raw_sqlite if dialect == "sqlite" else _raw
    return select(*(raw(column).label(f"c{n}") for n, column in enumerate(table.columns)))


def stored(table: Table, rows: Sequence[Fetched[Any]]) -> list[Stored]:
    """The rows by column name: bytes, str, int, or None; a time reads as records write it."""
    return [
        {
            column.name: _read(column, value)
            for column, value in zip(table.columns, row, strict=True)
        }
        for row in rows
    ]


def _raw(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(column, NullType())


def _raw_sqlite(column: ColumnElement[Any]) -> ColumnElement[Any]:
    match column.type:
        case Integer():
            kind, value = "integer", _raw(column)
        case LargeBinary():
            kind, value = "blob", _raw(column)
        case _:
            # As bytes, since the driver fails on text that is not UTF-8.
            value = _raw(cast(column, LargeBinary))
            return case((func.typeof(column) == "text", value), (column.is_not(None), 0))
    return case((func.typeof(column) == kind, value))


def _read(column: Column[Any], value: object) -> object:
    match column.type:
        case Integer():
            return value if isinstance(value, int) else None
        case LargeBinary():
            return value if isinstance(value, bytes) else None
        case UtcDateTime():
            return _moment(value)
        case _:
            return value.decode(errors="replace") if isinstance(value, bytes) else value


def _moment(value: object) -> str | None:
    match value:
        case bytes():
            text = value.decode(errors="replace").replace(" ", "T") + "Z"
        case datetime() if value.tzinfo is not None:
            text = timestamp(value)
        case _:
            return None
    return text if _TIME.match(text) else None
