"""The model: Hypothesis chooses what happens next to a house, and everything must hold after it.

Three processes, people, jobs, crashes, processes that stand still while others take over, a ledger
that is sealed late or not at all. Nothing depends on time or threads: a failure replays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.store.database import Database
from tests.model.actors import Actor
from tests.model.house import PEOPLE, House

PROCESS = st.integers(0, 2)
PICK = st.integers(0, 5)
#: What a round meets: at its first byte, and as its answer.
MEETS = st.sampled_from(["", "", "", "broken", "busy", "error", "unreachable"])
#: How far somebody goes on: what leads far is chosen beside what leads a little way.
LIFE = 40
SEALING = st.sampled_from([True, True, False])
STEPS = st.sampled_from([1, 2, 4, 9, LIFE, LIFE])


#: What may happen, as often as it is worth it.
EVENTS = (
    *("walk",) * 7, *("review",) * 5, *("step",) * 3, *("recover",) * 2, *("expire",) * 2,
    *("cancel",) * 2, "open", "refuse", "seal", "crash",
)  # fmt: skip
Draw: TypeAlias = Callable[[Any], Any]


class Machine(RuleBasedStateMachine):
    """See the module. `open_database`, `states` and `ends`, what became of calls, belong to the
    run, not to one example.
    """

    runner: asyncio.Runner
    open_database: Callable[[], Any]
    states: set[object]
    ends: set[str]
    events = EVENTS
    spoil = ""

    def __init__(self) -> None:
        super().__init__()
        self.house: Any = None

    def run(self, work: Any) -> Any:
        """Wait for it."""
        return self.runner.run(work)

    # --- what happens -----------------------------------------------------------------------

    @initialize(quorum=st.sampled_from([1, 2]), calls=st.sampled_from([[1], [2], [1, 1]]),
                count=st.sampled_from([6, LIFE, LIFE]))  # fmt: skip
    def furnish(self, quorum: int, calls: list[int], count: int) -> None:
        database: Database = self.run(type(self).open_database())
        self.house = House(database, quorum=quorum)
        self.run(self.house.furnish(self.spoil))
        self.house.open(0, calls)
        self.run(self._go(self.house.actors[0], count))

    # One rule, not one for each event: what Hypothesis leaves out of an example (it likes to do
    # without some rules) would often be what lets anything happen.
    @rule(data=st.data(), process=PROCESS, pick=PICK)
    def happens(self, data: st.DataObject, process: int, pick: int) -> None:
        """The next event, or some steps of those who are at work where it cannot be."""
        what = data.draw(st.sampled_from(self.events))
        alive = any(not actor.task.done() for actor in self.house.actors)
        event = getattr(self, f"_{what}") if alive else self._open
        if not event(data.draw, process, pick):
            self._walk(data.draw, process, pick)

    def _open(self, draw: Draw, process: int, _: int) -> bool:
        """An app asks."""
        if self.house.count >= 4:
            return False
        self.house.open(process, draw(st.sampled_from([[1], [1, 2]])))
        self.run(self._go(self.house.actors[-1], draw(STEPS)))
        return True

    def _walk(self, draw: Draw, _: int, __: int) -> bool:
        """Now this one goes on, now that one; the ledger is sealed meanwhile, or is not."""
        picks = draw(st.lists(st.tuples(PICK, MEETS), min_size=3, max_size=16))
        self.run(self._interleave(picks, sealing=draw(SEALING)))
        return True

    def _step(self, draw: Draw, _: int, pick: int) -> bool:
        """Somebody goes on for some steps."""
        able = self._runnable()
        if able:
            self.run(self._go(able[pick % len(able)], draw(STEPS), draw(MEETS)))
        return bool(able)

    def _refuse(self, _: Draw, __: int, pick: int) -> bool:
        """The ledger cannot be sealed: who waits for it is told so."""
        waiting = self._waiting()
        if waiting:
            self.run(waiting[pick % len(waiting)].step("no seal"))
        return bool(waiting)

    def _review(self, draw: Draw, process: int, pick: int) -> bool:
        """Somebody reviews; now and then what is decided already."""
        ids = self._pending() or list(self.house.rows)
        if ids:
            verdict = draw(st.sampled_from(["approve", "approve", "approve", "deny"]))
            person = draw(st.sampled_from(PEOPLE))
            self.house.review(process, ids[pick % len(ids)], person, verdict)
            self.run(self._go(self.house.actors[-1], draw(st.sampled_from([1, 1, 3, LIFE, LIFE]))))
        return bool(ids)

    def _expire(self, draw: Draw, process: int, _: int) -> bool:
        """Time passes, and the job that expires runs."""
        if not self._pending():
            return False
        self.house.clock.advance(60 * draw(st.sampled_from([0, 1, 4])))
        self.house.expire(process)
        self.run(self._go(self.house.actors[-1], draw(st.sampled_from([1, 1, 2, LIFE]))))
        return True

    def _cancel(self, draw: Draw, _: int, pick: int) -> bool:
        """An app does not want it any more."""
        actors = self._drivers()
        if not actors:
            return False
        actor = actors[pick % len(actors)]
        self.house.drivers[actor].cancel("not wanted")
        self.house.news += 1
        self.run(self._go(actor, draw(st.sampled_from([0, 2, 2, 3]))))
        return True

    def _seal(self, _: Draw, process: int, __: int) -> bool:
        """A process seals the ledger, perhaps not the one that did it last."""
        self.run(self.house.seal(process))
        return True

    def _crash(self, _: Draw, __: int, pick: int) -> bool:
        """A process in which something goes on dies."""
        able = self._runnable()
        if able:
            self.run(self.house.crash(able[pick % len(able)].process))
        return bool(able)

    def _recover(self, draw: Draw, process: int, _: int) -> bool:
        """A process takes over what it finds, whether its owner is dead or just stands still."""
        self.house.recover(process)
        self.run(self._go(self.house.actors[-1], draw(st.sampled_from([1, 4, LIFE, LIFE]))))
        return True

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
            self.ends.add(row.execution)
            left = self.house.world.left[row.upstream_id]
            assert row.execution != "sending", "nobody knows that its outcome is unknown"
            if left:
                assert row.execution in {"executed", "failed", "unknown"}, row.execution

    async def _close(self) -> None:
        for process in range(3):
            await self.house.crash(process)
        await self.house.db.close()

    # --- who there is -----------------------------------------------------------------------

    async def _interleave(self, picks: list[tuple[int, str]], *, sealing: bool) -> None:
        for pick, meets in picks:
            if sealing and self._waiting():
                await self.house.seal(0)
            able = self._runnable()
            if able:
                await able[pick % len(able)].step(meets)

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

    def _state(self) -> object:
        """What this moment is like, whatever the names and times in it."""
        rows = sorted((row.state, row.execution) for row in self.house.rows.values())
        actors = sorted(
            (actor.process, actor.name.split()[0], actor.at)
            for actor in self.house.actors
            if not actor.task.done()
        )
        return (self.house.quorum, tuple(rows), tuple(actors))
