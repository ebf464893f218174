"""Whoever waits learns of what another process has decided, whenever that was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.approvals.wakeups import Wakeups
from gateway.store.database import Database, open_database
from gateway.store.notifications import DECIDED, Notifications
from gateway.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.stage import Stage, stage

pytestmark = pytest.mark.slow


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


@pytest.fixture
async def elsewhere(sqlite: Database) -> AsyncIterator[Wakeups]:
    """Wake-ups of another process: nobody tells them anything."""
    wakeups = Wakeups(sqlite)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(wakeups.run())
        yield wakeups
        running.cancel()


async def test_a_decision_elsewhere_wakes_who_waits(played: Stage, elsewhere: Wakeups) -> None:
    first, second = await played.ask(), await played.ask()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(elsewhere.wait([first], 60))
        other = group.create_task(elsewhere.wait([second], 60))
        await asyncio.sleep(1.2)  # it has looked, and has found nothing
        assert not waiting.done()
        await played.decide(first, "deny")
        await waiting
        assert not other.done()
        await played.decide(second, "deny")


async def test_a_decision_just_before_the_waiting_is_not_missed(
    played: Stage, elsewhere: Wakeups
) -> None:
    approval_id = await played.ask()
    await played.decide(approval_id, "deny")
    await asyncio.sleep(1.2)  # it has looked, and nobody was waiting yet
    async with asyncio.timeout(10):
        await elsewhere.wait([approval_id], 60)


async def test_a_look_that_failed_is_made_up_for(
    played: Stage, elsewhere: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = await played.ask()
    await played.decide(approval_id, "deny")
    await asyncio.sleep(1.2)
    reading, failed = elsewhere._db.reading, asyncio.Event()

    def broken() -> None:
        failed.set()
        raise OSError("the disk is gone")

    monkeypatch.setattr(elsewhere._db, "reading", broken)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(elsewhere.wait([approval_id], 60))
        await failed.wait()
        monkeypatch.setattr(elsewhere._db, "reading", reading)


@pytest.mark.postgres
async def test_a_decision_on_one_replica_wakes_another_without_any_look(
    postgres_database: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.approvals.wakeups._PAUSE", 3600)  # only what is heard counts
    db, elsewhere = open_database(postgres_database), open_database(postgres_database)
    async with db.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    notifications = Notifications(elsewhere)
    wakeups = Wakeups(elsewhere, notifications)
    connected = asyncio.Event()
    notifications.on(DECIDED, lambda _: connected.set())
    async with stage(db, clock) as played, asyncio.TaskGroup() as group:
        first, second = await played.ask(), await played.ask()
        running = [group.create_task(notifications.run()), group.create_task(wakeups.run())]
        async with asyncio.timeout(20):
            await connected.wait()
            waiting = group.create_task(wakeups.wait([first], 60))
            other = group.create_task(wakeups.wait([second], 60))
            seen = await wakeups.changes(-1, 60)
            await played.decide(first, "deny")
            await waiting
            assert await wakeups.changes(seen, 60) > seen
            assert not other.done()
            # What was said while nobody listened is made up for by looking at everything.
            monkeypatch.setattr(notifications, "_react", lambda *_: None)
            await played.decide(second, "deny")
            await asyncio.sleep(0.3)
            assert not other.done()
            monkeypatch.undo()
            notifications._on_lost(None)
            await other
        for task in running:
            task.cancel()
    await db.close()
    await elsewhere.close()
