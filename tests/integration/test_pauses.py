"""Pauses on both databases: whom they cover, who is first, and that none slips past one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.approvals import release, standing
from gateway.approvals.release import Claimed
from gateway.approvals.standing import Waits
from gateway.audit import reading as records
from gateway.audit.records import SYSTEM
from gateway.errors import Conflict, NotFound, Refused
from gateway.registry import pauses
from gateway.registry.pauses import PauseView, Pausing
from gateway.registry.versions import bump_config
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import Stage, Wish, stage

APP = Pausing("app", "support-bot", "looks odd", "ann@example.org")


@pytest.fixture
async def played(db: Database, clock: FakeClock) -> AsyncIterator[Stage]:
    async with db.transaction() as session:
        await bump_config(session)  # as on any installation that has been configured
    async with stage(db, clock) as opened:
        yield opened


async def begin(played: Stage, wanted: Pausing = APP) -> PauseView:
    return await pauses.begin(played.ledger, wanted, actor=SYSTEM, now=played.clock())


async def claim(played: Stage, approval_id: str) -> release.Claim:
    kept, sending = played.kept[approval_id], played.sending(approval_id)
    return await release.begin_sending(
        played.approvals, kept, sending, played.directory, now=played.clock()
    )


async def approved(played: Stage) -> str:
    approval_id = await played.ask(Wish())
    await played.decide(approval_id, "approve")
    return approval_id


async def order(played: Stage) -> list[str]:
    """The kinds of the ledger's records about releases and pauses, in their order."""
    await played.ledger.settle()
    found = await records.search(played.db, records.Query(limit=200))
    kinds = [entry.document["type"] for entry in reversed(found.items)]
    return [kind for kind in kinds if kind.startswith(("release", "pause"))]


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        (Pausing("all", "", "r", "n"), True),
        (Pausing("app", "support-bot", "r", "n"), True),
        (Pausing("server", "bank", "r", "n"), True),
        (Pausing("app", "other", "r", "n"), False),
        (Pausing("server", "other", "r", "n"), False),
    ],
)
async def test_whom_a_pause_covers(played: Stage, wanted: Pausing, covered: bool):
    approval_id = await approved(played)
    await played.ask(Wish(app="other", server="other", url="https://other.example/mcp"))
    begun = await begin(played, wanted)
    found = await claim(played, approval_id)
    assert isinstance(found, Waits if covered else Claimed)
    if covered:
        await pauses.end(played.ledger, begun.id, "n", actor=SYSTEM, now=played.clock())
        assert isinstance(await claim(played, approval_id), Claimed)


async def test_E_17_a_pause_waits_for_the_release_that_was_first(
    played: Stage, monkeypatch: pytest.MonkeyPatch
):
    approval_id = await approved(played)
    examine, begun = standing.examine, []

    async def slowly(*arguments, **named):
        found = await examine(*arguments, **named)
        begun.append(asyncio.ensure_future(begin(played)))
        await asyncio.wait(begun, timeout=0.5)
        return found

    monkeypatch.setattr(standing, "examine", slowly)
    assert isinstance(await claim(played, approval_id), Claimed)
    await asyncio.gather(*begun)
    assert await order(played) == ["release.sending", "pause.begun"]


async def test_E_17_a_release_sees_the_pause_that_was_first(
    played: Stage, monkeypatch: pytest.MonkeyPatch
):
    approval_id = await approved(played)
    harder = standing.harder

    async def late(*arguments, **named):
        found = await harder(*arguments, **named)
        if not await pauses.listing(played.db):
            await begin(played)
        return found

    monkeypatch.setattr(standing, "harder", late)
    assert isinstance(await claim(played, approval_id), Waits)
    assert await order(played) == ["pause.begun"]


async def test_E_17_in_any_interleaving_no_release_stands_after_the_pause(played: Stage):
    waiting = [await approved(played) for _ in range(12)]

    async def claims(number: int) -> object:
        await asyncio.sleep(0.004 * number)
        return await claim(played, waiting[number])

    async def pause() -> None:
        await asyncio.sleep(0.02)
        await begin(played)

    results = await asyncio.gather(pause(), *(claims(number) for number in range(12)))
    found = await order(played)
    assert found[-1] == "pause.begun"
    sent = sum(isinstance(result, Claimed) for result in results)
    assert found.count("release.sending") == sent
    assert sum(isinstance(result, Waits) for result in results) == 12 - sent


async def test_what_is_paused_is_paused_once(played: Stage):
    await played.ask(Wish())
    results = await asyncio.gather(*(begin(played) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 3
    (pause,) = await pauses.listing(played.db)
    ends = [
        pauses.end(played.ledger, pause.id, "n", actor=SYSTEM, now=played.clock()) for _ in range(4)
    ]
    over = await asyncio.gather(*ends, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in over) == 3
    (ended,) = await pauses.listing(played.db, ended=True)
    assert ended.ended_by == "n"
    assert (await begin(played)).id != pause.id
    assert await order(played) == ["pause.begun", "pause.ended", "pause.begun"]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (Pausing("app", "nobody", "r", "n"), NotFound),
        (Pausing("server", "nothing", "r", "n"), NotFound),
        (Pausing("app", "", "r", "n"), Refused),
        (Pausing("all", "support-bot", "r", "n"), Refused),
        (Pausing("world", "x", "r", "n"), Refused),
        (Pausing("all", "", " ", "n"), Refused),
        (Pausing("all", "", "r" * 501, "n"), Refused),
    ],
)
async def test_what_cannot_be_paused(played: Stage, wanted: Pausing, error: type[Exception]):
    with pytest.raises(error):
        await begin(played, wanted)
    with pytest.raises(NotFound):
        await pauses.end(played.ledger, "pau_none", "n", actor=SYSTEM, now=played.clock())
    assert await pauses.listing(played.db) == []
