"""From a reviewer's click to the first resumed byte at the app.

    python -m tests.bench.resuming [COUNT]

One gateway on SQLite, and two on one PostgreSQL: decided at the replica that holds the stream, and
at the other one. Each gateway is a process of its own; so is neither the app nor Azure. Run it on
an otherwise idle machine, before and after a change.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.attempts import RESPONSES
from tests.support.gateway import http
from tests.support.postgres import running_postgres
from tests.support.replicas import Replica, open_replicas


async def measure(url: str, folder: Path, count: int, replicas: int) -> dict[str, list[float]]:
    """Milliseconds from click to byte, by where the click was."""
    taken: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        house = await open_replicas(stack, folder, url, count=replicas, GATEPASS_HEARTBEAT="1s")
        asked = house.replicas[0]
        for decider in house.replicas:
            where = "same replica" if decider is asked else "other replica"
            await _one(asked, decider)  # the first of everything takes longer
            taken[where] = [await _one(asked, decider) for _ in range(count)]
    return taken


async def _one(asked: Replica, decider: Replica) -> float:
    app = http(asked.url, {"api-key": asked.key})
    person = http(decider.url, {"authorization": f"Bearer {decider.token}"})
    body = {**asked.body(), "stream": True}
    async with app, person, app.stream("POST", RESPONSES, json=body) as answer:
        lines = answer.aiter_lines()
        reading = asyncio.ensure_future(_quiet(lines))
        [request] = await decider.pending()
        await reading
        review = {"verdict": "approve", "reason": "measured", "digest": request["digest"]}
        path = f"/api/v1/approval-requests/{request['id']}/reviews"
        begun = time.perf_counter()
        click = asyncio.ensure_future(person.post(path, json=review))
        while not (line := await anext(lines)).startswith("data: ") or "keepalive" in line[:60]:
            pass
        spent = time.perf_counter() - begun
        assert (await click).status_code == 201
        async for _ in lines:
            pass
    return spent * 1000


async def _quiet(lines: AsyncIterator[str]) -> None:
    """Read what comes before the hold: up to the first comment that only keeps it open."""
    async for line in lines:
        if line.startswith(":"):
            return


def main(count: int = 60) -> None:
    """Measure both databases."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "sqlite"
        own.mkdir()
        url = f"sqlite+aiosqlite:///{own / 'bench.sqlite3'}"
        _say("SQLite", asyncio.run(measure(url, own, count, 1)))
        with running_postgres() as server:
            shared = Path(folder) / "postgresql"
            shared.mkdir()
            url = asyncio.run(server.create())
            _say("PostgreSQL", asyncio.run(measure(url, shared, count, 2)))


def _say(name: str, taken: dict[str, list[float]]) -> None:
    for where, spent in taken.items():
        spent.sort()
        median, late = spent[len(spent) // 2], spent[int(len(spent) * 0.95)]
        print(f"{name}, {where}: p50 {median:.0f} ms, p95 {late:.0f} ms, {len(spent)} clicks")


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:2]))
