"""Hints between processes: sent by the commit or after it, and again after a lost connection."""

# ruff: noqa: PT012 - what rolls a transaction back is part of it

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import text

from gateway.store.database import Database, open_database
from gateway.store.notifications import DECIDED, SEALED, Notifications, tell

pytestmark = pytest.mark.postgres


class Heard(list[str]):
    """What one process heard."""

    async def until(self, true: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(10):
            while not true(self):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def process(url: str) -> AsyncIterator[tuple[Database, Notifications, Heard]]:
    """The notifications of one process, once they listen."""
    db = open_database(url)
    notifications, heard = Notifications(db), Heard()
    notifications.on(DECIDED, heard.append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(notifications.run())
        try:
            await heard.until(lambda said: said == [""])  # just connected: look at everything
            heard.clear()
            yield db, notifications, heard
        finally:
            running.cancel()
    await db.close()


async def test_what_is_told_arrives_with_the_commit_and_not_without(
    postgres_database: str,
) -> None:
    async with process(postgres_database) as (db, _, heard):
        with pytest.raises(RuntimeError):
            async with db.connection() as connection:
                await tell(connection, DECIDED, "apr_rolled_back")
                raise RuntimeError
        async with db.transaction() as session:
            await tell(session, DECIDED, "apr_1,apr_2")
            await tell(session, SEALED, "7")  # nobody listens to that
            await asyncio.sleep(0.1)
            assert heard == []
        await heard.until(lambda said: said == ["apr_1,apr_2"])


async def test_what_is_sent_arrives_at_the_others_only(postgres_database: str) -> None:
    async with (
        process(postgres_database) as (_, one, heard_by_one),
        process(postgres_database) as (_, other, heard_by_other),
    ):
        for number in range(3):
            await one.send(DECIDED, f"apr_{number}")
        await heard_by_other.until(lambda said: said == ["apr_0", "apr_1", "apr_2"])
        await other.send(DECIDED, "x" * 9000)  # too long: everything
        await heard_by_one.until(lambda said: said == [""])
        assert len(heard_by_other) == 3


async def test_a_command_sends_without_listening(postgres_database: str) -> None:
    async with process(postgres_database) as (db, _, heard):
        await Notifications(db).send(DECIDED, "apr_1")
        await heard.until(lambda said: said == ["apr_1"])


async def test_too_many_hints_become_one(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.notifications._MOST", 10)
    async with (
        process(postgres_database) as (_, one, _),
        process(postgres_database) as (_, _, heard),
    ):
        for number in range(12):  # without a pause, so that nothing is sent in between
            await one.send(DECIDED, str(number))
        await heard.until(lambda said: said == ["", "10", "11"])


async def test_a_lost_connection_is_made_again_and_everything_looked_at(
    postgres_database: str,
) -> None:
    async with process(postgres_database) as (db, notifications, heard):
        for _ in range(2):
            heard.clear()
            async with db.connection() as connection:
                await connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                        "datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            await heard.until(lambda said: said == [""])
            await notifications.send(SEALED, "7")  # as well as the others that it says
            async with db.connection() as connection:
                await tell(connection, DECIDED, "apr_1")
            await heard.until(lambda said: said == ["", "apr_1"])


async def test_what_fails_to_react_harms_nobody_else(postgres_database: str) -> None:
    db = open_database(postgres_database)
    notifications, heard = Notifications(db), Heard()
    notifications.on(DECIDED, lambda _: 1 // 0)
    notifications.on(DECIDED, heard.append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(notifications.run())
        await heard.until(lambda said: said == [""])
        running.cancel()
    await db.close()


async def test_on_sqlite_there_is_nothing_to_do(sqlite: Database) -> None:
    notifications = Notifications(sqlite)
    await notifications.run()
    await notifications.send(DECIDED, "apr_1")
    async with sqlite.transaction() as session:
        await tell(session, DECIDED, "apr_1")
