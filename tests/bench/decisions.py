"""Decisions a second, each acknowledged only under a signed head.

    python -m tests.bench.decisions [COUNT] [IN_FLIGHT] [sqlite|postgresql]

Prints one line for each database. Run it on an otherwise idle machine, before and after a change.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from gateway.approvals import review
from gateway.approvals.review import Reviewer, Submission
from gateway.audit.records import SYSTEM
from gateway.identity import people
from gateway.store import migration
from gateway.store.database import open_database
from gateway.telemetry import utc_now
from tests.support.postgres import running_postgres
from tests.support.stage import Stage, stage


async def measure(url: str, count: int, in_flight: int) -> tuple[float, float, float]:
    """Decisions a second, the 99th percentile and the CPU time of one in milliseconds."""
    await asyncio.to_thread(migration.upgrade, url)
    db = open_database(url)
    try:
        async with stage(db, utc_now) as played:
            played.ledger._poll = 1.0  # as a gateway looks; tests look more often
            reviewers = [await _reviewer(played, number) for number in range(in_flight)]
            work = [await _submission(played) for _ in range(count)]
            queue, taken = iter(work), list[float]()

            async def decide(reviewer: Reviewer) -> None:
                for submission in queue:
                    begun = time.perf_counter()
                    await review.review(played.approvals, reviewer, submission, now=utc_now())
                    taken.append(time.perf_counter() - begun)

            begun, busy = time.perf_counter(), time.process_time()
            async with asyncio.TaskGroup() as group:
                for reviewer in reviewers:
                    group.create_task(decide(reviewer))
            spent, busy = time.perf_counter() - begun, time.process_time() - busy
        slowest = sorted(taken)[int(len(taken) * 0.99)]
        return count / spent, slowest * 1000, busy / count * 1000
    finally:
        await db.close()


async def _reviewer(played: Stage, number: int) -> Reviewer:
    new = people.NewUser(f"rev{number}@example.org", ("reviewer",))
    user = await people.create_user(played.ledger, new, actor=SYSTEM, now=utc_now())
    roles, groups = frozenset(user.roles), frozenset(user.groups)
    return Reviewer(user.id, user.email, roles, groups, channel="api", auth="token")


async def _submission(played: Stage) -> Submission:
    approval_id = await played.ask()
    return Submission(approval_id, "approve", (await played.read(approval_id)).digest, "checked")


def main(count: int = 600, in_flight: int = 64, only: str = "") -> None:
    """Measure both databases."""
    with tempfile.TemporaryDirectory() as folder:
        if only in ("", "sqlite"):
            _say(
                "sqlite", f"sqlite+aiosqlite:///{Path(folder) / 'bench.sqlite3'}", count, in_flight
            )
        if only in ("", "postgresql"):
            with running_postgres() as server:
                _say("postgresql", asyncio.run(server.create()), count, in_flight)


def _say(name: str, url: str, count: int, in_flight: int) -> None:
    rate, slowest, busy = asyncio.run(measure(url, count, in_flight))
    told = f"{rate:.0f} decisions/s, p99 {slowest:.0f} ms, {busy:.1f} ms CPU each"
    print(f"{name}: {told}, {in_flight} in flight")


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:3]), *sys.argv[3:4])
