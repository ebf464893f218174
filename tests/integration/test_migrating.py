"""Migrating what is not empty: rows stay, a lock or a death in between leaves old or new."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, MetaData, Table, event, inspect, select, text
from sqlalchemy import types as t
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.cli import schema
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.store import migration
from gateway.store.tables import metadata
from tests.support.repository import ROOT

pytestmark = pytest.mark.slow
VERSIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
MOMENT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


async def on(url: str, work: Any) -> Any:
    """Do `work` with a plain connection, in one transaction."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def upgrade(url: str, to: str) -> None:
    await asyncio.to_thread(migration.upgrade, url, to)


def reflected(connection: Connection) -> MetaData:
    found = MetaData()
    found.reflect(connection)
    return found


def fill(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Two rows in every empty table, whatever its columns are at this version."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for table in reflected(connection).sorted_tables:
        if table.name == "alembic_version" or connection.execute(select(table)).first():
            continue
        rows[table.name] = [{c.name: value(c, n) for c in table.columns} for n in (1, 2)]
        for row in rows[table.name]:
            connection.execute(table.insert(), row)
    return rows


def value(column: Any, number: int) -> Any:
    """A value that fits the column, another one for each row; keys of other tables are theirs."""
    if (key := next(iter(column.foreign_keys), None)) is not None:
        return f"{key.column.table.name}.{key.column.name} {number}"
    match column.type:
        case t.Boolean():
            return number == 1
        case t.Integer():
            return number
        case t.DateTime():
            return MOMENT.replace(day=number, tzinfo=(column.type.timezone and UTC) or None)
        case t.JSON():
            return [f"{column.name} {number}"]
        case t.LargeBinary():
            return f"{column.name} {number}".encode()
        case _:
            return f"{column.table.name}.{column.name} {number}"


def everything(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
        for table in reflected(connection).sorted_tables
    }


def drawn(connection: Connection) -> dict[str, Any]:
    """Tables, columns and indexes, to be compared."""
    found = inspect(connection)
    return {
        name: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)),
            sorted((str(i["name"]), i["unique"]) for i in found.get_indexes(name)),
            sorted(str(u["name"]) for u in found.get_unique_constraints(name)),
        )
        for name in found.get_table_names()
        if name != "alembic_version"
    }


async def test_rows_of_every_version_stay_as_they_are_and_are_readable(db_url: str) -> None:
    written: dict[str, list[dict[str, Any]]] = {}
    for version in VERSIONS:
        await upgrade(db_url, version)
        written |= await on(db_url, fill)
    assert set(written) >= set(metadata.tables)
    after = await on(db_url, everything)
    for name, rows in written.items():
        key = sorted(rows[0])
        found = sorted(after[name], key=lambda row: [str(row[c]) for c in key])
        assert [{c: row[c] for c in key} for row in found] == sorted(
            rows, key=lambda row: [str(row[c]) for c in key]
        ), name

    def read(connection: Connection) -> None:
        for table in metadata.tables.values():  # as the program reads them
            assert len(connection.execute(select(table)).all()) == 2, table.name

    await on(db_url, read)
    await asyncio.to_thread(command.downgrade, migration._config(db_url), "0001")
    await upgrade(db_url, "head")
    await on(db_url, lambda connection: connection.execute(select(Table("apps", metadata))).all())


async def test_credentials_that_are_configured_are_bound_to_where_their_servers_are(
    db_url: str,
) -> None:
    await upgrade(db_url, "0003")
    told = [
        ("srv_1", "crm", "https://crm.example/mcp", "env:CRM", None),
        ("srv_2", "wiki", "http://[2001:db8::1]:8080/", "sealed:wiki", None),
        ("srv_3", "old", "https://old.example/", "env:OLD", MOMENT),
        ("srv_4", "open", "https://open.example/", None, None),
    ]

    def configure(connection: Connection) -> None:
        servers = reflected(connection).tables["servers"]
        for server_id, label, url, source, removed in told:
            connection.execute(
                servers.insert().values(
                    id=server_id,
                    label=label,
                    url=url,
                    credential=None if source is None else {"header": "X-Key", "from": source},
                    allow_private_network=False,
                    inject="headers",
                    pin="on_first_use",
                    created_at=MOMENT,
                    changed_at=MOMENT,
                    removed_at=removed,
                )
            )

    await on(db_url, configure)
    await upgrade(db_url, "head")

    def bound(connection: Connection) -> list[Any]:
        rows = connection.execute(select(Table("bound_credentials", metadata))).all()
        assert all(row.bound_at > MOMENT for row in rows)
        return sorted(tuple(row)[:5] for row in rows)

    assert await on(db_url, bound) == [
        ("env:CRM", "srv_1", "https://crm.example:443", "migration", "migration"),
        ("sealed:wiki", "srv_2", "http://[2001:db8::1]:8080", "migration", "migration"),
    ]


async def test_a_lock_of_another_makes_it_give_up_with_nothing_half_done(
    db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LOCK_PATIENCE", 0.5)
    await upgrade(db_url, "0001")
    before = await on(db_url, drawn)
    keys = {name: tmp_path / name for name in ("master_key_file", "signing_key_file")}
    settings = Settings(database_url=db_url, data_dir=tmp_path, **keys)
    engine = create_async_engine(db_url)
    async with engine.connect() as other:
        if other.dialect.name == "postgresql":
            await other.execute(text("LOCK TABLE handed_items IN ACCESS EXCLUSIVE MODE"))
        else:
            await other.execute(text("UPDATE meta SET value = value"))
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match="in use"):
                await asyncio.to_thread(schema.upgrade, settings)
    await engine.dispose()
    assert await on(db_url, drawn) == before
    assert await migration.current(db_url) == "0001"
    assert await asyncio.to_thread(schema.upgrade, settings) == migration.newest()


@pytest.mark.postgres
def test_the_command_says_it_in_one_sentence(postgres_server: Any, tmp_path: Path) -> None:
    url = asyncio.run(postgres_server.create())
    asyncio.run(upgrade(url, "0001"))

    async def locked() -> subprocess.CompletedProcess[str]:
        engine = create_async_engine(url)
        async with engine.connect() as other:
            await other.execute(text("LOCK TABLE apps IN ACCESS SHARE MODE"))
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "gateway", "migrate"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "GATEPASS_DATA_DIR": str(tmp_path),
                    "GATEPASS_DATABASE_URL": url,
                    "GATEPASS_MASTER_KEY_FILE": str(tmp_path / "master.key"),
                    "GATEPASS_SIGNING_KEY_FILE": str(tmp_path / "signing.key"),
                },
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        await engine.dispose()
        return done

    done = asyncio.run(locked())
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gatepass: The database is in use")
    asyncio.run(postgres_server.drop(url))


DIES = """
import os, signal, sys
from sqlalchemy import Engine, event
from gateway.store import migration
left = int(sys.argv[2])
@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
migration.upgrade(sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_C_23_a_death_during_a_migration_leaves_the_old_or_the_new_schema(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    names = itertools.count()

    async def empty() -> str:
        if server is not None:
            return str(await server.create())
        return f"sqlite+aiosqlite:///{tmp_path / f'{next(names)}.sqlite3'}"

    meant: dict[str | None, Any] = {}
    for version in VERSIONS:
        url = await empty()
        await upgrade(url, version)
        meant[version] = await on(url, drawn)
    meant[None] = {}
    found = set()
    for statement in _moments(await _statements(await empty())):
        url = await empty()
        died = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", DIES, url, str(statement)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert died.returncode == -signal.SIGKILL, statement
        version = await migration.current(url)
        assert await on(url, drawn) == meant[version], f"after {statement} statements"
        found.add(version)
        await upgrade(url, "head")
        assert await on(url, drawn) == meant[VERSIONS[-1]]
    assert len(found) > 1


async def _statements(url: str) -> int:
    """How many statements all migrations are."""
    count = itertools.count()

    def counted(*_: Any) -> None:
        next(count)

    event.listen(Engine, "before_cursor_execute", counted)
    try:
        await upgrade(url, "head")
    finally:
        event.remove(Engine, "before_cursor_execute", counted)
    return next(count)


def _moments(statements: int) -> Iterator[int]:
    """Some of them, over the whole way; the last one is a commit's."""
    for number in range(1, 7):
        yield max(1, statements * number // 7)


def test_a_database_that_is_locked_is_told_from_one_that_is_broken() -> None:
    assert schema._is_locked(str(sqlite3.OperationalError("database is locked")))
    assert not schema._is_locked("disk I/O error")
