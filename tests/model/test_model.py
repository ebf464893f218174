"""The machine finds nothing wrong with the program, and something with every fault put into it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event
from sqlalchemy.util import LRUCache

from gateway.store import sqlite
from gateway.store.database import Database, open_database
from gateway.store.tables import metadata
from tests.model.faults import FAULTS, Fault
from tests.model.machine import EVENTS, Machine
from tests.support.mutation import swapped


@dataclass
class Numbers:
    """What random numbers are made of."""

    randbits: Callable[[int], int]


class Inline(sqlite.Connection):
    """A connection without a thread: nothing else happens here while a statement runs."""

    async def _execute(self, fn, *args, **options):
        return fn(*args, **options)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    """The machine on SQLite: each example has a copy of an empty database."""
    monkeypatch.setattr(sqlite, "Connection", Inline)
    numbers = itertools.count()
    compiled = LRUCache(2000)
    empty = tmp_path / "empty.sqlite3"

    async def make(path: Path) -> Database:
        database = open_database(f"sqlite+aiosqlite:///{path}?check_same_thread=false")
        database.engine.sync_engine._compiled_cache = compiled  # one for all examples
        event.listen(database.engine.sync_engine, "connect", _careless)
        return database

    async def template() -> None:
        database = await make(empty)
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await database.close()

    async def fresh() -> Database:
        # Ids that grow: what is read in their order is read in the same order every time.
        ids = itertools.count(1)
        monkeypatch.setattr("gateway.store.ids.secrets", Numbers(lambda _: next(ids)))
        path = tmp_path / f"{next(numbers)}.sqlite3"
        shutil.copy(empty, path)
        return await make(path)

    with asyncio.Runner() as runner, structlog.testing.capture_logs():
        runner.run(template())
        yield type("Played", (Machine,), {
            "runner": runner, "open_database": staticmethod(fresh), "states": set(),
            "ends": set()})  # fmt: skip


def _careless(connection, _entry) -> None:
    # Processes die here, machines do not: nothing needs to reach the disk.
    connection.execute("PRAGMA synchronous=OFF")


def play(machine: type[Machine], examples: int, steps: int = 30) -> None:
    """The same examples every time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_that_can_happen_breaks_what_is_promised(machine: type[Machine]):
    play(machine, int(os.environ.get("EXAMPLES", "40")))
    print(f"{len(machine.states)} states")
    assert machine.ends >= {"executed", "unknown", "not_sent"}, "calls do not come that far"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_G_13_the_machine_finds(machine: type[Machine], fault: Fault):
    machine.spoil = fault.spoil
    machine.events = tuple(fault.events.split()) or EVENTS
    with swapped(*fault.mutations), pytest.raises(AssertionError):
        play(machine, 400)  # it ends with the first one that shows it
