"""Writing, sealing, elections, recovery and failing closed, on both databases."""
# ruff: noqa: PT012 - rows of the acceptance list are named as they stand there

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import OperationalError

from gateway.audit.ledger import Ledger, Receipt
from gateway.audit.sequencer import Sequencer, Stale
from gateway.errors import Conflict, Unavailable
from gateway.store.database import Database
from gateway.store.tables import Meta, metadata
from tests.support.clock import FakeClock
from tests.support.ledger import a_record, check_ledger, make_ledger, running, signer

META = metadata.tables["meta"]
RECORDS = metadata.tables["audit_records"]
HEADS = metadata.tables["audit_checkpoints"]


async def scalar(db: Database, statement) -> object:
    async with db.reading() as session:
        return await (await session.connection()).scalar(statement)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def test_transaction_writes_rows_and_records_together(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        async with ledger.transaction() as tx:
            tx.session.add(Meta(name="a", value="b"))
            tx.record(a_record(clock, "1"))
            tx.record(a_record(clock, "2"))
        receipt = await tx.sealed()
    assert receipt is not None
    assert receipt.size == 3  # with ledger.started
    assert receipt.index in (1, 2)
    assert str(receipt) == f"{receipt.index}@{receipt.size}"
    assert await scalar(db, select(META.c.value).where(META.c.name == "a")) == "b"
    assert await check_ledger(db) == 3


async def test_nothing_is_written_when_the_body_raises(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    with pytest.raises(RuntimeError):
        async with ledger.transaction() as tx:
            tx.session.add(Meta(name="a", value="b"))
            tx.record(a_record(clock))
            raise RuntimeError
    assert await scalar(db, select(META.c.value)) is None
    assert await scalar(db, select(RECORDS.c.id)) is None


async def test_the_same_transition_is_refused_and_rolls_back(
    db: Database, clock: FakeClock
) -> None:
    ledger = make_ledger(db, clock)
    async with ledger.transaction() as tx:
        tx.record(a_record(clock))
    with pytest.raises(Conflict):
        async with ledger.transaction() as tx:
            tx.session.add(Meta(name="a", value="b"))
            tx.record(a_record(clock))
    assert await scalar(db, select(META.c.value).where(META.c.name == "a")) is None


async def test_sealed_without_run_settles_by_itself(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with ledger.transaction() as tx:
        tx.record(a_record(clock))
    assert await tx.sealed() == Receipt(0, 1)
    assert await ledger.sealed([tx.records[0].id]) == Receipt(0, 1)
    assert await ledger.sealed([]) is None
    assert await check_ledger(db) == 1


async def test_group_commit_serves_many_callers(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                row = {"name": f"n{number}", "value": "x"}
                group.create_task(ledger.append_all([a_record(clock, str(number))], [(META, row)]))
        await ledger.sealed([a_record(clock, "199").id])
        await ledger.settle()
    assert await check_ledger(db) == 201


async def test_a_repeat_in_a_batch_harms_only_its_caller(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        await ledger.append_all([a_record(clock, "1")])
        results = await asyncio.gather(
            *(ledger.append_all([a_record(clock, key)]) for key in ("2", "1", "3")),
            return_exceptions=True,
        )
        await ledger.settle()
    assert [type(result) for result in results] == [type(None), Conflict, type(None)]
    assert await check_ledger(db) == 4


async def test_records_of_another_process_are_sealed(db: Database, clock: FakeClock) -> None:
    server, command = make_ledger(db, clock), make_ledger(db, clock)
    async with running(server):
        await server.append_all([a_record(clock, "server")])
        async with command.transaction() as tx:
            tx.record(a_record(clock, "command"))
        assert await tx.sealed() is not None
        assert server.elected
        assert not command.elected
    assert await check_ledger(db) == 3


async def test_sealing_many_batches_and_restarting(db: Database, clock: FakeClock) -> None:
    number = iter(range(10_000))
    for count in (1, 255, 3, 512, 700):
        ledger = make_ledger(db, clock)
        await ledger.append_all([a_record(clock, str(next(number))) for _ in range(count)])
        await ledger.settle()
        assert await check_ledger(db) == await scalar(
            db, select(HEADS.c.size).order_by(HEADS.c.size.desc()).limit(1)
        )
    assert await scalar(db, text("SELECT hashes FROM audit_tiles")) is not None


async def test_heartbeat_every_five_minutes(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        await until(lambda: ledger.elected)
        clock.advance(299)
        await asyncio.sleep(0.2)
        assert (
            await scalar(db, select(RECORDS.c.id).where(RECORDS.c.kind == "ledger.heartbeat"))
            is None
        )
        clock.advance(2)
        await asyncio.sleep(0.3)
    assert await scalar(db, select(RECORDS.c.id).where(RECORDS.c.kind == "ledger.heartbeat"))
    assert await check_ledger(db) == 2


async def test_C_04_committed_and_not_sequenced_is_sequenced_once(
    db: Database, clock: FakeClock
) -> None:
    await make_ledger(db, clock).append_all([a_record(clock, "1")])
    assert await scalar(db, select(HEADS.c.size)) is None
    async with running(make_ledger(db, clock)) as ledger:
        await ledger.sealed([a_record(clock, "1").id])
    async with running(make_ledger(db, clock)) as ledger:
        await until(lambda: ledger.elected)
        await ledger.settle()
    assert await check_ledger(db) == 3  # two elections and the record


async def test_C_05_tree_extended_and_not_committed_is_rebuilt(
    db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(db, clock)
    await ledger.append_all([a_record(clock, str(number)) for number in range(300)])
    await ledger.settle()
    await ledger.append_all([a_record(clock, "x")])
    monkeypatch.setattr(ledger.signer, "sign", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await ledger.settle()
    monkeypatch.undo()
    await ledger.settle()
    assert await check_ledger(db) == 301


class FreeSeat:
    """A lock that fails to keep two processes apart."""

    async def take(self) -> bool:
        return True

    async def held(self) -> bool:
        return True

    async def leave(self) -> None:
        return None


async def test_C_16_a_paused_sequencer_cannot_seal_after_another_was_elected(
    db: Database, clock: FakeClock
) -> None:
    paused, other = (Sequencer(db, signer(), clock, FreeSeat()) for _ in range(2))
    await paused.elect(announce=True)
    await paused.seal()
    await other.elect(announce=True)
    with pytest.raises(Stale, match="election 2"):
        await paused.seal()
    assert await other.seal() is not None
    await make_ledger(db, clock).append_all([a_record(clock)])
    with pytest.raises(Stale):
        await paused.seal()
    assert await other.seal() is not None
    assert await check_ledger(db) == 3


async def test_a_stale_ledger_is_elected_anew(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        await until(lambda: ledger.elected)
        async with db.connection() as connection:  # another process was elected meanwhile
            await connection.execute(
                update(META).where(META.c.name == "ledger_epoch").values(value="7")
            )
        await ledger.append_all([a_record(clock)])
        await ledger.settle()
    assert await scalar(db, select(META.c.value).where(META.c.name == "ledger_epoch")) == "8"
    await check_ledger(db)


async def test_C_21_garbage_signature_releases_nothing(
    db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(db, clock)
    async with running(ledger):
        await until(lambda: ledger.elected)
        await ledger.settle()
        monkeypatch.setattr(ledger.signer, "sign", lambda *_: 1 / 0)
        async with ledger.transaction() as tx:
            tx.record(a_record(clock))
        with pytest.raises(Unavailable):
            await tx.sealed()
        assert not ledger.healthy
        monkeypatch.undo()
        await ledger.settle()
        await asyncio.sleep(0.1)
        assert ledger.healthy
    await check_ledger(db)


async def test_C_27_second_gateway_on_one_sqlite_file_is_refused(
    sqlite: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.audit.ledger._GLANCE", 0.001)
    async with running(make_ledger(sqlite, clock)):
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="Another gateway"):
            async with asyncio.timeout(20):  # it would run on, were it let in
                await make_ledger(sqlite, clock).run()
    async with running(make_ledger(sqlite, clock)) as ledger:  # freed with the first one's end
        await ledger.settle()


async def test_a_changed_tile_stops_the_signing(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    await ledger.append_all([a_record(clock, str(number)) for number in range(300)])
    await ledger.settle()
    async with db.connection() as connection:
        await connection.execute(text("UPDATE audit_tiles SET hashes = :h"), {"h": bytes(32)})
    async with running(make_ledger(db, clock)) as restarted:
        await asyncio.sleep(0.1)
        async with restarted.transaction() as tx:
            tx.record(a_record(clock, "x"))
        with pytest.raises(Unavailable, match="do not lead"):
            await tx.sealed()
        assert restarted.problem
        assert "signed any further" in restarted.problem


async def test_A_09_an_older_copy_of_the_database_is_not_signed(
    db: Database, clock: FakeClock
) -> None:
    memory = signer()
    ledger = Ledger(db, memory, clock)
    await ledger.append_all([a_record(clock, "1")])
    await ledger.settle()
    await ledger.append_all([a_record(clock, "2")])
    await ledger.settle()
    async with db.connection() as connection:  # last night's copy
        await connection.execute(delete(RECORDS).where(RECORDS.c.index == 1))
        await connection.execute(delete(HEADS).where(HEADS.c.size == 2))
    await ledger.append_all([a_record(clock, "3")])
    with pytest.raises(Unavailable, match="older copy"):
        await Ledger(db, memory, clock).settle()


async def test_A_09_another_story_of_the_same_length_is_not_signed(
    db: Database, clock: FakeClock
) -> None:
    memory = signer()
    ledger = Ledger(db, memory, clock)
    await ledger.append_all([a_record(clock, "1")])
    await ledger.settle()
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS))
        await connection.execute(delete(HEADS))
    forger = Ledger(db, signer(), clock)
    await forger.append_all([a_record(clock, "2"), a_record(clock, "3")])
    await forger.settle()
    await ledger.append_all([a_record(clock, "4")])
    with pytest.raises(Unavailable, match="another story"):
        await Ledger(db, memory, clock).settle()


async def test_a_removed_last_record_stops_the_signing(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    await ledger.append_all([a_record(clock, "1"), a_record(clock, "2")])
    await ledger.settle()
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS).where(RECORDS.c.index == 1))
    await ledger.append_all([a_record(clock, "3")])
    with pytest.raises(Unavailable):
        await make_ledger(db, clock).settle()


async def test_waiting_callers_are_told_when_the_gateway_stops(
    sqlite: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(sqlite, clock)

    async def nothing() -> None:
        return None

    async with running(ledger):
        await ledger.settle()
        monkeypatch.setattr(ledger._sequencer, "seal", nothing)
        async with ledger.transaction() as tx:
            tx.record(a_record(clock))
        waiting = asyncio.ensure_future(tx.sealed())
        await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="stopping"):
        await waiting


async def test_C_18_disk_error_ends_the_process_without_acknowledging(
    sqlite: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(sqlite, clock)
    outcome: list[BaseException] = []

    async def write() -> None:
        try:
            await ledger.append_all([a_record(clock)])
        except Unavailable as error:
            outcome.append(error)

    async def broken(*_: object) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.run())
            await asyncio.sleep(0.1)
            monkeypatch.setattr("gateway.audit.inserts.Inserts.records", broken)
            group.create_task(write())
    assert caught.group_contains(OperationalError)
    assert len(outcome) == 1


async def test_C_18_disk_error_in_a_transaction_ends_the_process_too(
    sqlite: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(sqlite, clock)

    async def broken(*_: object) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    async def write() -> None:
        monkeypatch.setattr("gateway.audit.inserts.Inserts.records", broken)
        with pytest.raises(OperationalError):
            async with ledger.transaction() as tx:
                tx.record(a_record(clock))
        assert not ledger.healthy

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.run())
            await until(lambda: ledger.elected)
            group.create_task(write())
    assert caught.group_contains(OperationalError)


async def test_index_column_needs_no_gap(db: Database, clock: FakeClock) -> None:
    """Positions may have gaps (rolled back inserts), indexes never."""
    ledger = make_ledger(db, clock)
    await ledger.append_all([a_record(clock, "1")])
    async with db.connection() as connection:
        row = {"id": "x", "leaf_hash": b"", "body": b"", "kind": "k", "ts": clock()}
        await connection.execute(insert(RECORDS), row)
        await connection.execute(delete(RECORDS).where(RECORDS.c.id == "x"))
    await ledger.append_all([a_record(clock, "2")])
    await ledger.settle()
    assert await check_ledger(db) == 2


async def test_many_runs_of_positions_are_placed_in_order(db: Database, clock: FakeClock) -> None:
    """Rolled back inserts leave gaps: each run between them is placed by itself."""
    ledger = make_ledger(db, clock)
    for number in range(12):
        await ledger.append_all([a_record(clock, f"{number}:{more}") for more in range(number % 4)])
        if number % 3 == 0:
            with pytest.raises(Conflict):
                await ledger.append_all([a_record(clock, "x"), a_record(clock, "x")])
            async with db.connection() as connection:
                row = {"id": "gap", "leaf_hash": b"", "body": b"", "kind": "k", "ts": clock()}
                await connection.execute(insert(RECORDS), row)
                await connection.execute(delete(RECORDS).where(RECORDS.c.id == "gap"))
    await ledger.settle()
    assert await check_ledger(db) == 18


async def test_rows_of_several_shapes_in_one_append(db: Database, clock: FakeClock) -> None:
    ledger = make_ledger(db, clock)
    groups, users = metadata.tables["reviewer_groups"], metadata.tables["users"]
    user = {"id": "u", "email": "e", "roles": ["viewer"], "created_at": clock()}
    rows = [
        (META, {"name": "a", "value": "1"}),
        (META, {"name": "a", "value": "2"}),  # the first one counts
        (groups, {"name": "g", "members": ["x", "y"]}),
        (users, {**user, "disabled_at": None}),
        (users, {**user, "id": "v", "email": "f", "disabled_at": clock()}),
    ]
    await ledger.append_all([a_record(clock)], rows)
    assert await scalar(db, select(META.c.value).where(META.c.name == "a")) == "1"
    assert await scalar(db, select(groups.c.members)) == ["x", "y"]
    assert await scalar(db, select(users.c.created_at).where(users.c.id == "u")) == clock()
    assert await scalar(db, select(users.c.disabled_at).where(users.c.id == "u")) is None
    assert await scalar(db, select(users.c.disabled_at).where(users.c.id == "v")) == clock()
    naive = (users, {**user, "id": "w", "email": "g", "created_at": clock().replace(tzinfo=None)})
    async with running(ledger):
        results = await asyncio.gather(
            ledger.append_all([a_record(clock, "before")]),
            ledger.append_all([a_record(clock, "with it")], [naive]),
            ledger.append_all([a_record(clock, "after")]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), ValueError, type(None)]
        await ledger.append_all([a_record(clock, "with it")])


async def test_a_writer_that_failed_is_replaced(sqlite: Database, clock: FakeClock) -> None:
    ledger = make_ledger(sqlite, clock)
    for number in range(3):
        with pytest.raises(RuntimeError):
            async with sqlite.connection() as connection:
                await connection.execute(insert(META), {"name": f"n{number}", "value": "x"})
                raise RuntimeError
        await ledger.append_all([a_record(clock, str(number))])
    await ledger.settle()
    assert await scalar(sqlite, select(META.c.name).where(META.c.name != "ledger_epoch")) is None
    assert await check_ledger(sqlite) == 3
