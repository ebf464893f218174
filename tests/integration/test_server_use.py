"""What a server was used for, and what rests on it, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gateway.approvals import grants, server_use
from gateway.approvals.server_use import Resting
from gateway.approvals.terms import Terms
from gateway.audit.records import SYSTEM
from gateway.registry import apps
from gateway.registry.settings import AppSettings
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

BANK = ("srv_bank", "bank")


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(db, clock) as played:
        await played.directory.reload()
        yield played


async def rests(played: Stage) -> Resting:
    await played.directory.reload()
    view = played.directory.view
    return await server_use.rests_on(played.db, view, BANK, played.clock())


async def test_only_what_still_counts_rests_on_a_server(played: Stage, clock: FakeClock) -> None:
    assert await rests(played) == Resting(0, 0, (), 0)
    approval = await played.ask()
    await played.decide(approval, "approve")
    cy = await played.reviewer("cy@example.org")
    terms = Terms("tool", "app", clock() + timedelta(hours=1), (), 5)
    await grants.remember_later(played.approvals, cy, approval, terms, now=clock())
    await played.ask(Wish(tool="get_rate"))
    await played.ask(Wish(server="other", url="https://other.example/mcp"))
    settings = AppSettings("narrow", servers=("bank",))
    await apps.create(played.ledger, settings, actor=SYSTEM, now=clock())
    other = AppSettings("elsewhere", servers=())
    await apps.create(played.ledger, other, actor=SYSTEM, now=clock())
    assert await rests(played) == Resting(1, 1, ("narrow",), 1)
    clock.advance(3601)
    assert (await rests(played)).grants == 0


async def test_the_last_call_and_the_last_listing_are_by_server(
    played: Stage, clock: FakeClock
) -> None:
    assert await server_use.lately(played.db) == {}
    await played.ask()
    clock.advance(60)
    await played.ask()
    await played.ask(Wish(server="other", url="https://other.example/mcp", definition=None))
    found = await server_use.lately(played.db)
    assert found["srv_bank"].called == clock()
    assert found["srv_bank"].listed == clock()
    assert (found["srv_other"].called, found["srv_other"].listed) == (clock(), None)
