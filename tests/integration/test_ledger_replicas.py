"""Several ledgers on one PostgreSQL: one seals, the others follow, whatever happens to which."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit.ledger import Ledger
from gateway.audit.live import verify_live
from gateway.audit.records import SYSTEM
from gateway.audit.sequencer import Sequencer
from gateway.audit.signing import Signer
from gateway.audit.tree import Frontier
from gateway.errors import Unavailable
from gateway.registry import servers
from gateway.registry.directory import Directory
from gateway.registry.settings import ServerSettings
from gateway.store import database
from gateway.store.database import Database, open_database
from gateway.store.notifications import Notifications
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.ledger import SEED, a_record, check_ledger, signer
from tests.support.replica import Replica

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
RECORDS = metadata.tables["audit_records"]
HEADS = metadata.tables["audit_checkpoints"]


@pytest.fixture
async def url(postgres_database: str) -> str:
    db = open_database(postgres_database)
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await db.close()
    return postgres_database


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    """Where the test looks."""
    db = open_database(url)
    yield db
    await db.close()


@contextlib.asynccontextmanager
async def replica(
    url: str, clock: FakeClock, *, key: Signer | None = None, poll: float = 0.05, heard: bool = True
) -> AsyncIterator[Ledger]:
    """The ledger of one replica, running on an engine of its own."""
    db = open_database(url)
    notifications = Notifications(db)
    ledger = Ledger(db, key or signer(), clock, poll=poll, notifications=notifications)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ledger.run())]
            if heard:
                tasks.append(group.create_task(notifications.run()))
            try:
                await ledger.ready.wait()
                yield ledger
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        await db.close()


async def write(ledger: Ledger, clock: FakeClock, key: str) -> object:
    async with ledger.transaction() as tx:
        tx.record(a_record(clock, key))
    return await tx.sealed()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


async def test_one_seals_and_the_others_write_wait_and_are_healthy(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with (
        replica(url, clock) as one,
        replica(url, clock) as two,
        replica(url, clock) as three,
    ):
        ledgers = (one, two, three)
        assert [ledger.elected for ledger in ledgers] == [True, False, False]
        receipts = await asyncio.gather(
            *(
                write(ledger, clock, f"{n}:{i}")
                for i, ledger in enumerate(ledgers)
                for n in range(20)
            )
        )
        assert all(receipt.size > receipt.index for receipt in receipts)
        await two.settle()
        assert all(ledger.healthy for ledger in ledgers)
    assert await check_ledger(db) == 61


async def test_hints_are_enough_and_not_needed(
    url: str, db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(url, clock, heard=False), replica(url, clock, heard=False) as follower:
        await write(follower, clock, "found by looking")
    monkeypatch.setattr("gateway.audit.ledger._GLANCE", 3600)
    async with (
        replica(url, clock, poll=3600) as leader,
        replica(url, clock, poll=3600) as follower,
        asyncio.timeout(20),
    ):
        await until(lambda: follower._notifications._running and leader._notifications._running)
        await asyncio.sleep(0.5)  # both listen
        assert leader.elected
        assert not follower.elected
        for number in range(3):
            await write(follower, clock, f"heard of {number}")
    await check_ledger(db)


async def test_C_04_what_was_committed_is_sealed_once_by_whoever_comes_next(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with replica(url, clock) as follower_to_be:
        pass  # it has been elected, and has ended
    async with replica(url, clock, poll=0.1) as leader, replica(url, clock, poll=0.1) as follower:
        leader._sequencer.seal = blocked  # type: ignore[method-assign]
        async with follower.transaction() as tx:
            tx.record(a_record(clock, "committed"))
        waiting = asyncio.ensure_future(tx.sealed())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await leader._sequencer.resign()
        leader._next_election = float("inf")
        receipt = await waiting
        assert follower.elected
        assert receipt is not None
        assert await follower.sealed([tx.records[0].id]) == receipt
    assert not follower_to_be.elected
    await check_ledger(db)


async def blocked() -> None:
    return None


async def test_C_05_a_head_that_was_not_committed_is_made_again_with_the_same_root(
    url: str, db: Database, clock: FakeClock
) -> None:
    tried: dict[int, bytes] = {}
    async with replica(url, clock) as leader, replica(url, clock) as follower:
        leader._next_election = follower._next_election = float("inf")
        write_head = leader._sequencer._write_head

        async def dies(connection: AsyncConnection, frontier: Frontier) -> str:
            tried[frontier.size] = frontier.root()
            await write_head(connection, frontier)
            raise OSError("died before the commit")

        leader._sequencer._write_head = dies  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await write(leader, clock, "1")
        assert not leader.elected
        follower._sequencer._started = lambda *_: a_record(clock, "2")  # type: ignore[method-assign]
        follower._next_election = float("-inf")
        await follower.settle()
        assert follower.elected
    async with db.reading() as session:
        query = select(HEADS.c.size, HEADS.c.root)
        made = dict((await (await session.connection()).execute(query)).all())
    assert tried
    assert await check_ledger(db) == max(made)
    assert all(made.get(size, root) == root for size, root in tried.items())


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_C_06_whoever_was_not_told_finds_the_same_place_when_asking_again(
    url: str, db: Database, clock: FakeClock, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.audit.waiting._PATIENCE", 0.3)
    async with replica(url, clock) as leader, replica(url, clock) as follower:
        ledger = leader if who == "leader" else follower
        ledger._waiting._tell = lambda _: None  # type: ignore[method-assign]
        async with ledger.transaction() as tx:
            tx.record(a_record(clock, "1"))
        with pytest.raises(Unavailable, match="in time"):
            await tx.sealed()
        places = [await one.sealed([tx.records[0].id]) for one in (leader, follower, ledger)]
        assert len({place.index for place in places if place}) == 1
    await check_ledger(db)


async def test_a_follower_takes_over_soon_after_the_sequencer_has_ended(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with AsyncExitStack() as of_leader, AsyncExitStack() as of_follower:
        leader = await of_leader.enter_async_context(replica(url, clock, poll=1.0))
        follower = await of_follower.enter_async_context(replica(url, clock, poll=1.0))
        assert leader.elected
        await of_leader.aclose()
        assert not follower.elected
        started = asyncio.get_running_loop().time()
        await write(follower, clock, "1")
        assert follower.elected
        assert asyncio.get_running_loop().time() - started < 5  # it looks once a second
    await check_ledger(db)


async def test_C_16_a_paused_sequencer_loses_its_place_and_cannot_fork_the_ledger(
    url: str, db: Database, tmp_path: Path, clock: FakeClock
) -> None:
    one = Replica(url, tmp_path, "one")
    others = []
    try:
        await one.until(lambda it: it.elected and it.sealed)
        others = [Replica(url, tmp_path, name) for name in ("two", "three")]
        for other in others:
            await other.until(lambda it: it.sealed)
        one.pause()
        before = [len(other.sealed) for other in others]
        async with asyncio.timeout(40):  # 5 s of patience, 10 s more if it was in a transaction
            while any(len(other.sealed) < n + 20 for other, n in zip(others, before, strict=True)):
                await asyncio.sleep(0.05)
        assert sum(other.elected for other in others) == 1
        here = len(one.sealed)
        one.resume()
        await one.until(lambda it: not it.elected and len(it.sealed) > here + 20)
        assert sum(other.elected for other in others) == 1
    finally:
        for process in (one, *others):
            process.kill()
    await whole(url, db, clock, [one, *others])
    assert all(line[0] != "failed" for other in others for line in other.said)


async def test_no_kill_forks_the_ledger_or_loses_what_was_acknowledged(
    url: str, db: Database, tmp_path: Path, clock: FakeClock
) -> None:
    chance = random.Random(4)
    everybody = [Replica(url, tmp_path, f"r{number}") for number in range(3)]
    running = list(everybody)
    try:
        for number in range(3, 8):
            for process in running:
                await process.until(lambda it: len(it.sealed) > 5)
            async with asyncio.timeout(20):
                while not (leaders := [process for process in running if process.elected]):
                    await asyncio.sleep(0.02)
            await asyncio.sleep(chance.random() / 5)
            for victim in {leaders[0], chance.choice(running)} if number % 3 else leaders[:1]:
                victim.kill()
                running.remove(victim)
                fresh = Replica(url, tmp_path, f"r{number}.{len(everybody)}")
                running.append(fresh)
                everybody.append(fresh)
    finally:
        for process in running:
            process.kill()
    await whole(url, db, clock, everybody)


async def whole(url: str, db: Database, clock: FakeClock, replicas: list[Replica]) -> None:
    """One tree of everything, with each record in the place that was acknowledged."""
    async with replica(url, clock) as last:
        await last.settle()
    await check_ledger(db)
    report = await verify_live(db, signer().verifier)
    assert report.valid, list(map(str, report.findings))
    async with db.reading() as session:
        query = select(RECORDS.c.id, RECORDS.c.index)
        places = dict((await (await session.connection()).execute(query)).all())
    for process in replicas:
        assert {name: places.get(name) for name in process.sealed} == process.sealed


class Taken:
    """A seat that somebody else does not get up from."""

    async def take(self) -> bool:
        return False

    async def held(self) -> bool:
        return False

    async def leave(self) -> None:
        return None


async def test_of_several_who_see_a_stopped_sequencer_one_takes_its_place(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with replica(url, clock):
        pass
    first, second = (Sequencer(db, signer(), clock, Taken()) for _ in range(2))
    assert not await first.elect(announce=True)
    assert await first.elect(announce=True, deposing=1)
    assert not await second.elect(announce=True, deposing=1)  # the second comes too late
    assert await first.seal() is not None
    await check_ledger(db)


async def test_sessions_of_the_gateway_are_durable_and_bound(db: Database) -> None:
    for name, value in (
        ("synchronous_commit", "on"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("lock_timeout", "10s"),
    ):
        async with db.engine.connect() as connection:
            assert await connection.scalar(text(f"SHOW {name}")) == value


async def test_a_sequencer_paused_in_a_transaction_blocks_the_next_one_for_a_while_only(
    url: str, db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database._POSTGRESQL, "idle_in_transaction_session_timeout", "1s")
    async with replica(url, clock) as leader:
        await write(leader, clock, "1")
    paused = open_database(url)
    connection = await paused.engine.connect()
    await connection.execute(text("SELECT value FROM meta WHERE name = 'ledger_epoch' FOR SHARE"))
    async with replica(url, clock) as other:
        await until(lambda: other.elected)
        await write(other, clock, "2")
    await connection.invalidate()
    await connection.close()
    await paused.close()
    await check_ledger(db)


async def test_a_change_of_the_configuration_is_in_force_everywhere_as_soon_as_it_is_heard_of(
    url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registry.directory._SECONDS_BETWEEN_LOOKS", 3600)
    async with (
        replica(url, clock) as leader,
        replica(url, clock) as follower,
        asyncio.TaskGroup() as group,
        asyncio.timeout(20),
    ):
        directories = [Directory(r.db, r.settle, r._notifications) for r in (leader, follower)]
        for ledger in (leader, follower):
            ledger._notifications._on_lost(None)  # what was asked for late is listened to, too
        watching = [group.create_task(directory.run()) for directory in directories]
        await until(lambda: all(directory._view is not None for directory in directories))
        await asyncio.sleep(0.5)  # their first looks are over, and both listen
        by = {"actor": SYSTEM, "now": clock()}
        for label, ledger in (("one", leader), ("two", follower)):
            await servers.register(ledger, ServerSettings(label, f"https://{label}.ex/"), **by)
            await until(lambda x=label: all(x in d.view.servers_by_label for d in directories))
        for task in watching:
            task.cancel()


async def go_back(db: Database, size: int) -> None:
    """What a lagging standby that has taken over looks like: its rows end at `size`."""
    async with db.connection() as connection:
        await connection.execute(delete(RECORDS).where(RECORDS.c.index >= size))
        await connection.execute(delete(HEADS).where(HEADS.c.size > size))


async def test_C_20_a_database_that_went_back_is_refused_by_all_who_have_seen_more(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with replica(url, clock) as leader, replica(url, clock) as follower:
        for number in range(5):
            await write(leader, clock, f"l{number}")
            await write(follower, clock, f"f{number}")
        await until(lambda: (follower.signer.last() or None) == leader.signer.last())
        await go_back(db, 4)
        await until(lambda: not follower.healthy)
        assert "older copy" in str(follower.problem)
        for ledger in (leader, follower):
            with pytest.raises(Unavailable, match=r"older copy|not sealed"):
                await write(ledger, clock, f"after {ledger is leader}")
            with pytest.raises(Unavailable, match="older copy"):
                await ledger.settle()
        await until(lambda: not leader.healthy)
        assert "older copy" in str(leader.problem)
        async with db.reading() as session:
            assert await (await session.connection()).scalar(select(func.max(HEADS.c.size))) == 4


async def test_C_20_a_follower_refuses_what_a_sequencer_without_memory_would_sign(
    url: str, db: Database, clock: FakeClock
) -> None:
    async with replica(url, clock) as old, replica(url, clock) as follower:
        for number in range(3):
            await write(follower, clock, str(number))
        await until(lambda: (follower.signer.last() or None) == old.signer.last())
        old._next_election = follower._next_election = float("inf")
        await old._sequencer.resign()
        await go_back(db, 1)
        async with replica(url, clock) as forgetful:  # its folder was lost
            for number in range(3):  # until there are as many as there were
                await write(forgetful, clock, f"other {number}")
            await until(lambda: "another story" in str(follower.problem))
            with pytest.raises(Unavailable, match="another story"):
                await write(follower, clock, "x")


async def test_C_20_a_memory_that_is_only_older_refuses_nothing(
    url: str, db: Database, clock: FakeClock, tmp_path: Path
) -> None:
    def key() -> Signer:
        return Signer("gatepass.test", SEED, tmp_path / "old.head")

    async with replica(url, clock, key=key()) as one:
        await write(one, clock, "1")
    remembered = key().last()
    async with replica(url, clock) as another:
        for number in range(2, 9):
            await write(another, clock, str(number))
        async with replica(url, clock, key=key()) as late:
            assert late.healthy
            await write(late, clock, "9")
            assert late.healthy
    assert remembered is not None
    newest = key().last()
    assert newest is not None
    assert newest.size > remembered.size  # followers remember, too
    await check_ledger(db)


async def test_C_21_a_signature_that_cannot_be_verified_is_never_stored(
    url: str, db: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(url, clock) as leader, replica(url, clock) as follower:
        stranger, own, sign = Signer("gatepass.test", bytes(32)), leader.signer, Signer.sign
        garbage: dict[str, Callable[[int, bytes], str]] = {
            "another key": lambda size, root: sign(stranger, size, root),
            "another size": lambda size, root: sign(own, size + 1, root),
            "another root": lambda size, _: sign(own, size, bytes(32)),
            "other bytes": lambda size, root: sign(own, size, root)[:-8] + "AAAAAAA\n",
            "nothing": lambda *_: "",
        }
        for what, makes in garbage.items():
            monkeypatch.setattr(Signer, "sign", lambda _, *head, makes=makes: makes(*head))
            async with leader.transaction() as tx:
                tx.record(a_record(clock, what))
            with pytest.raises(Unavailable):
                await tx.sealed()
            assert not await is_sealed(db, tx.records[0].id)
        monkeypatch.undo()
        await follower.settle()
    await check_ledger(db)


async def is_sealed(db: Database, record_id: str) -> bool:
    async with db.reading() as session:
        query = select(RECORDS.c.index).where(RECORDS.c.id == record_id)
        return await (await session.connection()).scalar(query) is not None


async def test_waiting_costs_a_few_queries_however_many_wait(
    url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.audit.ledger._GLANCE", 0.1)
    async with replica(url, clock) as leader, replica(url, clock) as follower:
        asked: list[int] = []
        look_up = follower._waiting._look_up

        async def counted(ids):
            asked.append(len(ids))
            return await look_up(ids)

        monkeypatch.setattr(follower._waiting, "_look_up", counted)
        monkeypatch.setattr(leader._sequencer, "seal", blocked)
        records = [a_record(clock, str(number)) for number in range(300)]
        await follower.append_all(records)
        async with asyncio.TaskGroup() as group:
            for record in records:
                for _ in range(3):
                    group.create_task(follower.sealed([record.id], fresh=True))
            await asyncio.sleep(1)
            assert max(asked) == 300
            assert len(asked) < 30
            monkeypatch.undo()
