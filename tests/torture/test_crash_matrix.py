"""Every point in the life of a held call is one where the gateway dies with -9, and comes back.

`lives` says what must be true after each death. KILLS is how many deaths one life gets in each
test; `make torture KILLS=1000` takes every point there is.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.torture.lives import House, Life, open_house
from tests.torture.mortals import Zygote

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
KILLS = int(os.environ.get("KILLS", "0"))
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
#: Which lives, how many deaths each gets in the ordinary run, and in how many tests.
LIVES = [
    (Life("plain"), 24, 2),
    (Life("stream"), 28, 2),
    (Life("background"), 28, 1),
    (Life("plain", "deny"), 16, 1),
    (Life("stream", "deny"), 16, 1),
    (Life("plain", quorum=2), 20, 1),
]
PARTS = [
    pytest.param(life, count, part, parts, id=f"{life.name}-{part + 1}of{parts}")
    for life, count, parts in LIVES
    for part in range(parts)
]
ASKED = "commit call.ruled+approval.requested"
DECIDED = "commit approval.reviewed+approval.decided"
SENDING, OBSERVED = "commit release.sending", "commit execution.observed"
OPENED, FINISHED = "commit exchange.opened+security.overridden", "commit exchange.finished"


@pytest.fixture(params=DATABASES)
async def url(request: pytest.FixtureRequest) -> str | None:
    """Nothing for SQLite."""
    if request.param == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return await server.create()


@pytest.mark.parametrize(("life", "count", "part", "parts"), PARTS)
async def test_G_08_a_death_at_any_point_loses_nothing_and_repeats_nothing(
    ancestor: Zygote, tmp_path: Path, url: str | None, life: Life, count: int, part: int, parts: int
):
    async with open_house(ancestor, tmp_path, url, quorum=life.quorum) as house:
        await house.whole(life)  # the first one also pins the tools
        total = len(await house.whole(life))
        step = max(1.0, total / ((KILLS or count) * parts))
        # The two databases are not killed at the same points.
        first = part * step + (step / 2 if url else 0)
        number = first
        while number < total:
            await house.cut(life, int(number) + 1)
            number += step * parts
        await house.close()
    print(f"{life.name}: {house.tally}")


#: Row, the point before or after which it dies, and after which other one that comes.
ROWS = [
    ("C_01_request_read_and_nothing_stored", f"{OPENED} before", ""),
    ("C_02_azure_asks_and_nothing_committed", f"{ASKED} before", ""),
    ("C_03_inside_the_commit_of_a_decision", f"{DECIDED} before", ""),
    ("C_04_decided_and_not_sequenced", f"{DECIDED} after", ""),
    ("C_05_tree_grown_in_memory_only", "commit head before", f"{DECIDED} after"),
    ("C_06_head_written_and_nobody_told", "commit head after", f"{DECIDED} after"),
    ("C_08_claimed_and_not_marked", f"{SENDING} before", ""),
    ("C_09_marked_and_no_socket_opened", "azure POST not begun", f"{SENDING} after"),
    ("C_10_half_of_the_body_sent", "azure half sent", f"{SENDING} after"),
    ("C_11_executed_and_the_answer_lost", "azure POST answers", f"{SENDING} after"),
    ("C_12_answer_read_and_outcome_not_committed", f"{OBSERVED} before", ""),
    ("C_13_outcome_committed_and_the_app_not_told", f"{FINISHED} after", ""),
]


def _number(points: list[str], name: str, after: str) -> int:
    start = points.index(after) if after else 0
    return points.index(name, start) + 1


async def _dies_at(house: House, life: Life, name: str, after: str) -> int:
    """How many outcomes a death there leaves unknown. Some frames may come in other pieces this
    time, so that it dies elsewhere: then it is tried again.
    """
    for _ in range(30):
        points = await house.whole(life)
        before = house.tally.unknown
        if await house.cut(life, _number(points, name, after)) == name:
            return house.tally.unknown - before
    raise AssertionError(f"it did not come by {name}")


async def test_C_01_to_C_13_named_points(ancestor: Zygote, tmp_path: Path, url: str | None):
    life = Life("plain")
    unknown = {}
    async with open_house(ancestor, tmp_path, url) as house:
        await house.whole(life)
        for row, name, after in ROWS:
            unknown[row[:4]] = await _dies_at(house, life, name, after)
        await house.close()
    assert {row for row, count in unknown.items() if count} == {"C_09", "C_10", "C_11", "C_12"}


async def test_C_07_a_decision_whose_answer_was_lost_is_repeated_and_not_reversed(
    ancestor: Zygote, tmp_path: Path, url: str | None
):
    life = Life("plain")
    async with open_house(ancestor, tmp_path, url) as house:
        await house.whole(life)
        request, answers = await house.decided_twice(life, f"{DECIDED} after")
        assert answers == [201, 409]
        assert (request["state"], request["execution"]) == ("approved", "executed")
        assert len(request["reviews"]) == 1
        await house.close()
