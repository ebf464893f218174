"""Whatever is written into a column of the ledger: a finding with a layer, never a failure."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.audit import live, reading
from gateway.audit.ledger import Ledger
from gateway.audit.live import verify_live
from gateway.audit.verification import Layer
from gateway.store.database import Database, open_database
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.evidence import Teller
from tests.support.ledger import a_record, make_ledger, signer

pytestmark = pytest.mark.slow

KEY = signer().verifier
TABLES = ("audit_records", "audit_tiles", "audit_checkpoints")
VALUES = [
    "NULL", "0", "-1", "-9223372036854775808", "9223372036854775807", "3.5", "1e300", "''", "'x'",
    "'2026-01-05 09:00:99'", "x''", "x'ff'", "zeroblob(32)", "CAST(x'fffe' AS TEXT)", "char(0)",
    "CAST({column} AS TEXT)", "CAST({column} AS BLOB)", "{column} || 'x'", "{column} + 1",
    "hex(randomblob(6000))", "9223372036854775807.0 * 4",
]  # fmt: skip
# What no signature covers: another time or election that is as likely says nothing about records.
UNATTESTED = {("audit_checkpoints", "epoch"), ("audit_records", "position")}


async def told(db: Database, clock: FakeClock) -> Ledger:
    """300 records in three batches: a full tile, and a part of one."""
    ledger = make_ledger(db, clock)
    teller = Teller(clock)
    for number in range(2):
        teller.whole(str(number))
    more = [a_record(clock, str(number)) for number in range(290)]
    for batch in (teller.records, more[:145], more[145:]):
        await ledger.append_all(batch)
        await ledger.settle()
    return ledger


def unbind(path: Path) -> sqlite3.Connection:
    """Tables without types and constraints: whoever may write may do that first."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA legacy_alter_table=ON")
    for table in TABLES:
        names = ", ".join(f'"{column.name}"' for column in metadata.tables[table].columns)
        connection.execute(f"CREATE TABLE loose ({names})")
        connection.execute(f"INSERT INTO loose SELECT {names} FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE loose RENAME TO {table}")
    return connection


@pytest.mark.parametrize("table", TABLES)
async def test_any_value_in_any_column_is_found(
    table: str, sqlite: Database, clock: FakeClock, tmp_path: Path
) -> None:
    await told(sqlite, clock)
    await sqlite.close()
    path = tmp_path / "gatepass.sqlite3"
    db = open_database(f"sqlite+aiosqlite:///{path}")
    try:
        with contextlib.closing(unbind(path)) as raw:
            await try_everything(table, raw, db)
    finally:
        await db.close()


async def try_everything(table: str, raw: sqlite3.Connection, db: Database) -> None:
    assert (await verify_live(db, KEY)).findings == []
    rows = [row for (row,) in raw.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
    tried = 0
    for column in metadata.tables[table].columns:
        name = f'"{column.name}"'
        for number, value in enumerate(VALUES):
            row = rows[number * 7 % len(rows)]
            kept = raw.execute(f"SELECT {name} FROM {table} WHERE rowid = {row}").fetchone()[0]
            raw.execute(
                f"UPDATE {table} SET {name} = {value.format(column=name)} WHERE rowid = {row}"
            )
            (changed,) = raw.execute(
                f"SELECT {name} IS NOT ?1 OR typeof({name}) <> typeof(?1) "
                f"FROM {table} WHERE rowid = {row}",
                (kept,),
            ).fetchone()
            if changed:
                report = await verify_live(db, KEY)
                tried += 1
                if (table, column.name) not in UNATTESTED or value[0] not in "{90":
                    assert report.exit_code in set(Layer), (column.name, value)
                for finding in report.findings:
                    assert finding.sentence
            raw.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = {row}", (kept,))
    assert tried > 10 * len(metadata.tables[table].columns)
    assert (await verify_live(db, KEY)).findings == []


async def test_a_body_rewritten_as_text_names_its_record(
    sqlite: Database, clock: FakeClock
) -> None:
    await told(sqlite, clock)
    async with sqlite.connection() as connection:
        await connection.execute(
            text('UPDATE audit_records SET body = CAST(body AS TEXT) WHERE "index" = 7')
        )
    report = await verify_live(sqlite, KEY)
    assert (report.exit_code, report.findings[0].index) == (Layer.TREE, 7)
    assert report.findings[0].damage == "record altered"


async def test_heads_taken_away_leave_records_that_no_head_covers(
    db: Database, clock: FakeClock
) -> None:
    await told(db, clock)
    async with db.connection() as connection:
        await connection.execute(text("DELETE FROM audit_checkpoints WHERE size > 200"))
    report = await verify_live(db, KEY)
    assert (report.exit_code, report.findings[0].damage) == (Layer.TREE, "records without head")
    async with db.connection() as connection:
        await connection.execute(text("DELETE FROM audit_checkpoints"))
    report = await verify_live(db, KEY)
    assert (report.exit_code, report.findings[0].damage) == (Layer.TREE, "records without head")


async def test_tiles_added_are_found(db: Database, clock: FakeClock) -> None:
    await told(db, clock)
    async with db.connection() as connection:
        await connection.execute(
            text("INSERT INTO audit_tiles SELECT 2, 0, hashes FROM audit_tiles")
        )
    report = await verify_live(db, KEY)
    assert (report.exit_code, report.findings[0].damage) == (Layer.TREE, "unknown tile")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE audit_records ALTER COLUMN body TYPE text USING encode(body, 'escape')",
        "ALTER TABLE audit_records ALTER COLUMN ts TYPE text",
        "ALTER TABLE audit_records ALTER COLUMN ts TYPE timestamp",
        'ALTER TABLE audit_records ALTER COLUMN "index" TYPE text',
        'ALTER TABLE audit_records ALTER COLUMN "index" TYPE numeric',
        "ALTER TABLE audit_records DROP COLUMN actor",
        "ALTER TABLE audit_tiles ALTER COLUMN hashes TYPE text USING encode(hashes, 'hex')",
        "ALTER TABLE audit_checkpoints ALTER COLUMN note TYPE bytea USING convert_to('x', 'UTF8')",
        "ALTER TABLE audit_checkpoints ALTER COLUMN epoch TYPE text",
        "ALTER TABLE audit_checkpoints ALTER COLUMN root TYPE integer USING 5",
        "DROP TABLE audit_tiles",
    ],
)
@pytest.mark.postgres
async def test_altered_tables_are_found(
    change: str, postgres_database: str, clock: FakeClock
) -> None:
    db = open_database(postgres_database)
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await told(db, clock)
    async with db.connection() as connection:
        await connection.execute(text(change))
    await db.close()
    db = open_database(postgres_database)
    assert (await verify_live(db, KEY)).exit_code in set(Layer)
    await db.close()


async def test_verifying_reads_one_moment(
    db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await told(db, clock)

    async def more() -> None:
        await ledger.append_all([a_record(clock, f"later {clock.advance(1)}")])
        await ledger.settle()

    whole = live._Live._strays

    async def meanwhile(self: live._Live) -> None:
        await more()
        await whole(self)

    monkeypatch.setattr(live._Live, "_strays", meanwhile)
    report = await verify_live(db, KEY)
    assert [str(finding) for finding in report.findings] == []
    assert report.size == 300
    assert (await reading.latest(db)).size == 301
