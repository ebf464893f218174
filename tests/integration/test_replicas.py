"""Leases, claims and fences: who drives an exchange, and what nobody else may do about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlmodel import col, select

from gateway.app import create_app
from gateway.approvals import decisions, exchanges, holding, release, replicas
from gateway.approvals.exchanges import Ending
from gateway.approvals.holding import Round, Rules
from gateway.approvals.kept import Kept, Superseded
from gateway.approvals.lease import LENGTH, Lease
from gateway.approvals.replicas import Sought
from gateway.audit.live import verify_live
from gateway.config import Settings
from gateway.exchange.messages import Broken, Call, Forward, Observed, ServerFacts
from gateway.policy.rules import parse
from gateway.proxy.azure import Azure, Upstream, Watch, Wire
from gateway.proxy.keeping import Keeper
from gateway.store import migration
from gateway.store.database import Database, open_database
from gateway.store.tables import ApprovalRequest, Exchange, Replica, ResponseId, metadata
from gateway.vault import open_vault
from tests.support.clock import FakeClock
from tests.support.demo import KEY, open_world
from tests.support.stage import Stage, Wish, stage

LEASE = timedelta(seconds=0.6)
PATIENT = timedelta(minutes=5)  # longer than any test takes


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        yield played


@pytest.fixture
async def shared(postgres_database: str) -> AsyncIterator[Database]:
    db = open_database(postgres_database)
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield db
    await db.close()


async def held(played: Stage) -> tuple[str, Kept]:
    approval_id = await played.ask(Wish())
    return approval_id, played.kept[approval_id]


async def row_of(db: Database, exchange_id: str) -> Exchange:
    async with db.reading() as session:
        return await session.get_one(Exchange, exchange_id)


async def owned(db: Database, exchange_id: str, owner: str) -> None:
    async with db.transaction() as session:
        await session.exec(
            update(Exchange).where(col(Exchange.id) == exchange_id).values(owner=owner)
        )


# --- claims ---------------------------------------------------------------------------------


async def test_of_two_claims_one_wins_and_the_fence_grows(played: Stage):
    _, kept = await held(played)
    leases = [Lease(played.db), Lease(played.db)]
    won = await asyncio.gather(
        *(replicas.take(played.db, lease, kept.id, kept.fence) for lease in leases)
    )
    assert sorted(won) == [False, True]
    row = await row_of(played.db, kept.id)
    assert (row.owner, row.fence) == (leases[won.index(True)].id, kept.fence + 1)
    assert row.left_at is not None


async def test_what_is_over_is_claimed_by_nobody(played: Stage):
    _, kept = await held(played)
    await exchanges.finish(played.approvals, kept, Ending("cancelled", 1, None), now=played.clock())
    assert not await replicas.take(played.db, Lease(played.db), kept.id, kept.fence)


async def act_save(played: Stage, kept: Kept, approval_id: str) -> None:
    saved = {"machine": {"stitcher": {"round": 0}}}
    async with played.ledger.transaction() as tx:
        await exchanges.save(tx, played.envelope, kept, saved, {})


async def act_send(played: Stage, kept: Kept, approval_id: str) -> None:
    await begin(played, kept)


async def begin(played: Stage, kept: Kept, *approval_ids: str) -> None:
    await played.directory.refresh()
    sending = played.sending(*approval_ids)
    claim = await release.begin_sending(
        played.approvals, kept, sending, played.directory, now=played.clock()
    )
    assert isinstance(claim, release.Claimed)


async def act_finish(played: Stage, kept: Kept, approval_id: str) -> None:
    output = [{"type": "message", "id": "msg_stale"}]
    ending = Ending("completed", 1, {"output": output})
    await exchanges.finish(played.approvals, kept, ending, now=played.clock())


async def act_name(played: Stage, kept: Kept, approval_id: str) -> None:
    await exchanges.name_response(played.approvals, kept, "resp_stale", 0, now=played.clock())


async def act_name_later(played: Stage, kept: Kept, approval_id: str) -> None:
    await exchanges.name_response(played.approvals, kept, "resp_stale", 1, now=played.clock())


async def act_observe(played: Stage, kept: Kept, approval_id: str) -> None:
    # What tells of an execution is kept all the same, as evidence.
    observed = Observed("mcpr", "unknown")
    await release.observe(played.approvals, kept, approval_id, observed, now=played.clock())


async def act_cancel(played: Stage, kept: Kept, approval_id: str) -> None:
    await decisions.cancel(played.approvals, kept.id, kept=kept, now=played.clock())


async def act_leave_open(played: Stage, kept: Kept, approval_id: str) -> None:
    call = Call("mcpr_stale", "bank", "transfer", "{}", 0)
    servers = {"bank": ServerFacts("srv_bank", "bank", "https://mcp.bank.example/mcp")}
    ended = Round(kept, [call], servers, {}, None)
    rules = Rules(parse([]), "sha256:" + "1" * 64, {}, timedelta(hours=1))
    await holding.open_hold(played.approvals, ended, rules, now=played.clock())


ACTS = (
    act_save, act_send, act_finish, act_name, act_name_later, act_observe, act_cancel,
    act_leave_open,
)  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
async def test_C_15_who_lost_the_exchange_writes_nothing_about_it(
    played: Stage, act: Callable[[Stage, Kept, str], Awaitable[None]]
):
    approval_id, kept = await held(played)
    assert await replicas.take(played.db, Lease(played.db), kept.id, kept.fence)
    before = await everything(played.db)
    with pytest.raises(Superseded):
        await act(played, kept, approval_id)
    assert await everything(played.db) == before


async def everything(db: Database) -> list[Any]:
    """What could have been changed."""
    counts = [
        "audit_records", "exchanges", "approval_requests", "response_ids", "handed_items"
    ]  # fmt: skip
    async with db.reading() as session:
        connection = await session.connection()
        found = [await connection.scalar(text(f"SELECT count(*) FROM {name}")) for name in counts]
        rows = (await session.exec(select(Exchange))).all()
        calls = (await session.exec(select(ApprovalRequest))).all()
        named = (await session.exec(select(ResponseId))).all()
    return [*found, *(each.model_dump() for each in (*rows, *calls, *named))]


async def test_the_outcome_of_what_another_process_sent_names_no_fence_of_ours(played: Stage):
    """Else the ledger would tell of an execution under a claim that released nothing."""
    approval_id, kept = await held(played)
    await played.decide(approval_id, "approve")
    await begin(played, kept, approval_id)
    assert kept.released == kept.fence
    for _ in range(2):
        taken = (await exchanges.load(played.db, played.envelope, kept.id)).kept
        assert await replicas.take(played.db, Lease(played.db), kept.id, taken.fence)
    taken = (await exchanges.load(played.db, played.envelope, kept.id)).kept
    unknown = Observed("mcpr", "unknown")
    await release.observe(played.approvals, taken, approval_id, unknown, now=played.clock())
    await played.ledger.settle()
    report = await verify_live(played.db, played.ledger.signer.verifier)
    assert report.valid, list(map(str, report.findings))


async def test_letting_go_is_for_the_owner_only(played: Stage):
    _, kept = await held(played)
    lease = Lease(played.db)
    assert await replicas.take(played.db, lease, kept.id, kept.fence)
    await replicas.let_go(played.db, kept)  # an old claim
    assert (await row_of(played.db, kept.id)).owner == lease.id
    kept.fence += 1
    await replicas.let_go(played.db, kept)
    assert (await row_of(played.db, kept.id)).owner is None


async def test_a_thread_is_the_exchange_itself_where_it_goes_on_from_nothing(played: Stage):
    _, kept = await held(played)
    assert (await row_of(played.db, kept.id)).thread == kept.id


# --- what was turned ------------------------------------------------------------------------


async def test_an_owner_learns_what_was_withdrawn_and_what_was_taken(played: Stage):
    mine, other = Lease(played.db), Lease(played.db)
    kept = [(await held(played))[1] for _ in range(3)]
    for each in kept:
        assert await replicas.take(played.db, mine, each.id, each.fence)
    assert await replicas.turned(played.db, mine, [each.id for each in kept]) == []
    await replicas.withdraw(played.db, kept[0].id, "Enough.")
    assert await replicas.take(played.db, other, kept[1].id, kept[1].fence + 1)
    found = await replicas.turned(played.db, mine, [each.id for each in kept])
    assert {(each.id, each.withdrawn) for each in found} == {
        (kept[0].id, "Enough."),
        (kept[1].id, None),
    }
    assert await replicas.withdrawn(played.db, kept[0].id) == "Enough."
    saved = await exchanges.load(played.db, played.envelope, kept[0].id)
    assert saved.withdrawn == "Enough."


# --- leases ---------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_E_18_a_lease_runs_by_the_clock_of_the_database(shared: Database, clock: FakeClock):
    """Whoever looks says how long a lease is: for one of minutes no machine is too busy, and a
    short one is over as soon as the database says so.
    """
    async with stage(shared, clock) as played:
        living, dead = Lease(shared, PATIENT), Lease(shared, PATIENT)
        hasty = Lease(shared, LEASE)
        hasty.id = living.id  # the same replica, as far as others are concerned
        await living.join()
        await dead.join()
        first, second, third = [(await held(played))[1] for _ in range(3)]
        await owned(shared, first.id, living.id)
        await owned(shared, second.id, dead.id)
        assert await free_for(shared, living) == {third.id}
        clock.advance(2 * PATIENT.total_seconds())
        assert await free_for(shared, living) == {third.id}
        assert not await living.alone()
        async with asyncio.timeout(60):
            while await free_for(shared, hasty) != {second.id, third.id}:
                await living.beat()
            assert await hasty.alone()
            while await hasty.alone():
                await dead.beat()
        await dead.leave()
        assert await living.alone()
        assert await free_for(shared, living) == {second.id, third.id}


async def free_for(db: Database, lease: Lease) -> set[str]:
    """Which exchanges nobody drives, as the holder of this lease sees it."""
    return {name for name, _ in await replicas.free(db, lease)}


@pytest.mark.postgres
async def test_C_15_a_lease_that_lapsed_is_another_one_afterwards(shared: Database):
    """What was begun before it lapsed must not go on as if nothing had happened."""
    lease = Lease(shared, LEASE)
    await lease.join()
    term = await lease.renewed()
    assert lease.holds(term)
    await asyncio.sleep(LEASE.total_seconds() + 0.1)
    assert not lease.holds(term)
    await lease.beat()
    assert not lease.holds(term)
    assert lease.holds(await lease.renewed())


@pytest.mark.postgres
async def test_a_lease_is_renewed_while_it_runs(shared: Database):
    lease = Lease(shared, timedelta(seconds=20))
    lease.pause = 0.02
    await lease.join()

    async def seen() -> Any:
        async with shared.reading() as session:
            return (await session.get_one(Replica, lease.id)).seen_at

    first = await seen()
    running = asyncio.ensure_future(lease.run())
    async with asyncio.timeout(10):
        while await seen() == first:
            await asyncio.sleep(0.02)
    running.cancel()


@pytest.mark.postgres
async def test_a_process_that_follows_another_in_its_folder_need_not_wait_for_its_lease(
    shared: Database, tmp_path: Path
):
    """The lock on the file is the kernel's: it is free when, and only when, that one has ended."""
    before, beside, after = (Lease(shared, LENGTH, tmp_path) for _ in range(3))
    await before.join()
    await beside.join()
    assert not await beside.alone()
    assert before._claim is not None
    before._claim.leave()  # as the end of the process does
    await after.join()
    await beside.leave()
    assert await after.alone()


@pytest.mark.postgres
async def test_a_process_that_takes_much_up_at_its_start_keeps_its_lease_meanwhile(
    postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else what it resumes is not sent, for its lease has lapsed, and others take it away again."""
    taken_up = asyncio.Event()

    async def look(keeper: Keeper) -> None:
        lease = keeper._tools.lease
        joined = lease._beaten
        async with asyncio.timeout(20):
            while lease._beaten == joined:
                await asyncio.sleep(0.02)
        taken_up.set()

    monkeypatch.setattr(Keeper, "look", look)
    await asyncio.to_thread(migration.upgrade, postgres_database)
    settings = Settings(
        data_dir=tmp_path,
        database_url=postgres_database,
        master_key_file=tmp_path / "master.key",
        signing_key_file=tmp_path / "signing.key",
    )
    app = create_app(settings, lease=timedelta(seconds=1))
    async with app.router.lifespan_context(app):
        assert taken_up.is_set()


async def test_on_sqlite_everything_of_the_process_before_is_free(
    sqlite: Database, clock: FakeClock
):
    async with stage(sqlite, clock) as played:
        before, now = Lease(sqlite), Lease(sqlite)
        await before.join()
        _, kept = await held(played)
        await owned(sqlite, kept.id, before.id)
        assert await replicas.free(sqlite, before) == []
        await now.join()
        assert await replicas.free(sqlite, now) == [(kept.id, kept.fence)]
        assert now.holds(now.term)


@pytest.mark.parametrize("may", [True, False])
async def test_C_15_no_byte_leaves_for_azure_once_the_lease_has_lapsed(
    sqlite: Database, clock: FakeClock, may: bool
):
    async with AsyncExitStack() as stack:
        world = await open_world(stack)
        played = await stack.enter_async_context(stage(sqlite, clock))
        vault = open_vault(sqlite, played.envelope, {}, ())
        azure = Azure(Upstream(f"{world.url}/openai/v1/", KEY, 10), played.directory, vault)
        await played.directory.reload()
        await azure.open()
        turn = Forward(0, {"model": "gpt-4.1", "input": "Hello"}, (), (), ())
        watch = Watch(may=lambda: may)
        prepared = await azure.prepare(turn, fresh=True)
        events = [event async for event in azure.round(prepared, Wire({}, {}), watch)]
        await azure.close()
        sent = (await world.get("/_demo/requests")).json()["requests"]
    if may:
        assert len(sent) == 1
        return
    assert sent == []
    assert isinstance(events[-1], Broken)
    assert (events[-1].sent, events[-1].code) == (False, "unavailable")


# --- asked for again ------------------------------------------------------------------------


async def test_a_repeat_finds_the_newest_that_is_open_or_kept(played: Stage, clock: FakeClock):
    lease = Lease(played.db)
    await lease.join()
    _, kept = await held(played)
    await owned(played.db, kept.id, lease.id)
    digest = "sha256:" + "0" * 64
    sought = Sought(kept.app_id, digest, None, True)
    ago = clock() - timedelta(minutes=2)
    found = await replicas.alike(played.db, lease, sought, ago)
    assert found is not None
    assert (found.id, found.state, found.alive, found.attended) == (kept.id, "holding", True, True)
    await replicas.attend(played.db, lease, [kept.id], left_at=clock())
    found = await replicas.alike(played.db, lease, sought, ago)
    assert found is not None
    assert not found.attended
    for other in (
        Sought("app_else", digest, None, True),
        Sought(kept.app_id, "sha256:1", None, True),
        Sought(kept.app_id, digest, "key", True),
    ):
        assert await replicas.alike(played.db, lease, other, ago) is None
    ending = Ending("completed", 1, {"output": []})
    await exchanges.finish(played.approvals, kept, ending, now=clock())
    assert await replicas.alike(played.db, lease, sought, ago) is not None
    assert await replicas.alike(played.db, lease, sought, clock() + timedelta(seconds=1)) is None


async def test_what_a_client_that_went_away_has_missed_is_kept(played: Stage):
    for heard, missed in ((True, False), (False, False), (True, True)):
        _, kept = await held(played)
        if missed:
            await replicas.miss(played.db, kept.id)
        frames = ["event: response.completed\n\n"]
        ending = Ending(
            "completed", 1, {"output": []}, frames=frames, retrievable=False, heard=heard
        )
        await exchanges.finish(played.approvals, kept, ending, now=played.clock())
        row = await row_of(played.db, kept.id)
        assert (row.final is not None) == (row.log is not None) == (missed or not heard)
