"""The model: Hypothesis chooses what happens next to a house, and everything must hold after it.

Three processes, people, jobs, crashes, processes that stand still while others take over, a ledger
that is sealed late or not at all. Nothing depends on time or threads: a failure replays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.store.database import Database
from tests.model.actors import Actor
from tests.model.house import PEOPLE, House

PROCESS = st.integers(0, 2)
PICK = st.integers(0, 5)
#: What a round meets: at its first byte, and as its answer.
MEETS = st.sampled_from(["", "", "", "broken", "busy", "error", "unreachable"])
#: How far somebody goes on: what leads far is chosen beside what leads a little way.
STEPS = st.sampled_from([1, 1, 2, 4, 9, 14])
LIFE = 40


class Machine(RuleBasedStateMachine):
    """See the module. `open_database` and `states` belong to the run, not to one example."""

    runner: asyncio.Runner
    open_database: Callable[[], Any]
    states: set[object]
    spoil = ""

    def __init__(self) -> None:
        super().__init__()
        self.house: Any = None

    def run(self, work: Any) -> Any:
        """Wait for it."""
        return self.runner.run(work)

    # --- what happens -----------------------------------------------------------------------

    @initialize(quorum=st.sampled_from([1, 2]), calls=st.sampled_from([[1], [2], [1, 1]]))
    def furnish(self, quorum: int, calls: list[int]) -> None:
        database: Database = self.run(type(self).open_database())
        self.house = House(database, quorum=quorum)
        self.run(self.house.furnish(self.spoil))
        self.house.open(0, calls)
        self.run(self._go(self.house.actors[0], LIFE))

    @rule(process=PROCESS, calls=st.sampled_from([[1], [1, 2]]))
    @precondition(lambda self: self.house.count < 2)
    def open(self, process: int, calls: list[int]) -> None:
        """An app asks."""
        self.house.open(process, calls)

    @rule(pick=PICK, count=STEPS, meets=MEETS)
    @precondition(lambda self: self._runnable())
    def step(self, pick: int, count: int, meets: str) -> None:
        """Somebody goes on for some steps."""
        able = self._runnable()
        self.run(self._go(able[pick % len(able)], count, meets))

    @rule(pick=PICK)
    @precondition(lambda self: self._waiting())
    def refuse(self, pick: int) -> None:
        """The ledger cannot be sealed: who waits for it is told so."""
        waiting = self._waiting()
        self.run(waiting[pick % len(waiting)].step("no seal"))

    @rule(process=PROCESS, pick=PICK, person=st.sampled_from(PEOPLE),
          verdict=st.sampled_from(["approve", "approve", "approve", "deny"]),
          count=st.sampled_from([0, 2, 3, LIFE, LIFE, LIFE]))  # fmt: skip
    @precondition(lambda self: self._reviewable())
    def review(self, process: int, pick: int, person: str, verdict: str, count: int) -> None:
        """Somebody reviews."""
        ids = self._reviewable()
        self.house.review(process, ids[pick % len(ids)], person, verdict)
        self.run(self._go(self.house.actors[-1], count))

    @rule(process=PROCESS, minutes=st.sampled_from([0, 1, 4]), count=st.sampled_from([0, 2, LIFE]))
    @precondition(lambda self: self._pending())
    def expire(self, process: int, minutes: int, count: int) -> None:
        """Time passes, and the job that expires runs."""
        self.house.clock.advance(60 * minutes)
        self.house.expire(process)
        self.run(self._go(self.house.actors[-1], count))

    @rule(pick=PICK, count=st.sampled_from([0, 2, 3]))
    @precondition(lambda self: self._pending() and self._drivers())
    def cancel(self, pick: int, count: int) -> None:
        """An app does not want it any more."""
        actors = self._drivers()
        actor = actors[pick % len(actors)]
        self.house.drivers[actor].cancel("not wanted")
        self.run(self._go(actor, count))

    @rule(process=st.sampled_from([0, 0, 0, 1, 2]))
    def seal(self, process: int) -> None:
        """A process seals the ledger."""
        self.run(self.house.seal(process))

    @rule(pick=PICK)
    @precondition(lambda self: self._runnable())
    def crash(self, pick: int) -> None:
        """A process in which something goes on dies."""
        able = self._runnable()
        self.run(self.house.crash(able[pick % len(able)].process))

    @rule(process=PROCESS, count=STEPS)
    @precondition(lambda self: self.house.rows)
    def recover(self, process: int, count: int) -> None:
        """A process takes over what it finds, whether its owner is dead or just stands still."""
        self.house.recover(process)
        self.run(self._go(self.house.actors[-1], count))

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """After every step."""
        self.run(self.house.look())
        self.states.add(self._state())

    def teardown(self) -> None:
        """Everybody dies, one process takes up what is left, and everything comes to its end."""
        if self.house is None:
            return
        try:
            if not self._failed():
                self.run(self._finish())
        finally:
            self.run(self._close())

    def _failed(self) -> bool:
        return bool(self.house.broken or self.house.errors)

    async def _finish(self) -> None:
        house = self.house
        for process in range(3):
            await house.crash(process)
        house.recover(0)
        for _ in range(60):
            for actor in list(house.actors):
                await self._go(actor, LIFE)
            await house.look()
            if not self._pending() and all(actor.task.done() for actor in house.actors):
                break
            house.clock.advance(600)
            house.expire(0)
        else:
            raise AssertionError("it does not come to an end")
        self._check_ends()
        await house.verify()

    def _check_ends(self) -> None:
        for row in self.house.rows.values():
            left = self.house.world.left[row.upstream_id]
            assert row.execution != "sending", "nobody knows that its outcome is unknown"
            if left:
                assert row.execution in {"executed", "failed", "unknown"}, row.execution

    async def _close(self) -> None:
        for process in range(3):
            await self.house.crash(process)
        await self.house.db.close()

    # --- who there is -----------------------------------------------------------------------

    async def _go(self, actor: Actor, count: int, meets: str = "") -> None:
        for number in range(count):
            if actor.task.done() or (number and actor.at == "waits"):
                return
            if not actor.runnable:
                if count < LIFE:
                    return
                await self.house.seal(0)
            await actor.step(meets)

    def _runnable(self) -> list[Actor]:
        return [actor for actor in self.house.actors if actor.runnable]

    def _waiting(self) -> list[Actor]:
        return [actor for actor in self.house.actors if actor.at == "sealed"]

    def _drivers(self) -> list[Actor]:
        return [actor for actor in self.house.drivers if actor.runnable]

    def _pending(self) -> list[str]:
        return [row.id for row in self.house.rows.values() if row.state == "pending"]

    def _reviewable(self) -> list[str]:
        """Now and then somebody reviews what is decided already."""
        return self._pending() or list(self.house.rows)

    def _state(self) -> object:
        """What this moment is like, whatever the names and times in it."""
        rows = sorted((row.state, row.execution) for row in self.house.rows.values())
        actors = sorted(
            (actor.process, actor.name.split()[0], actor.at)
            for actor in self.house.actors
            if not actor.task.done()
        )
        return (self.house.quorum, tuple(rows), tuple(actors))
