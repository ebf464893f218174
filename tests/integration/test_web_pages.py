"""Pages over a real database: what people see, and that looking decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage


@pytest.fixture
async def played(sqlite: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with stage(sqlite, clock) as played:
        yield played


async def test_the_inbox_lists_what_waits_soonest_first(played: Stage) -> None:
    late = await played.ask(Wish(rule={"expires": "50m"}))
    soon = await played.ask(Wish(tool="get_rate", rule={"expires": "10m"}))
    ann = await played.signed_in("ann@example.org", "reviewer")
    text = (await ann.get("/inbox")).text
    assert text.index(f"/requests/{soon}") < text.index(f"/requests/{late}")
    assert "(2) Inbox" in text


async def test_a_request_shows_everything(played: Stage) -> None:
    approval = await played.ask()
    ann = await played.signed_in("ann@example.org", "reviewer")
    answer = await ann.get(f"/requests/{approval}")
    assert answer.status_code == 200, answer.text
    for fact in ("mcp.bank.example", "support-bot", "customer-17", "1250.00", "DE02 1203"):
        assert fact in answer.text
