"""Actors that go on only when they are told to: every interleaving is the test's own.

An actor is one coroutine of a process. It stops ("parks") wherever another one could come between
in a real system: after each commit and each reading, where it waits for the signed head, before and
after the first byte that it sends. Nothing else of the program is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

_acting: ContextVar[Actor | None] = ContextVar("acting", default=None)


def always() -> bool:
    """The reason to go on of whoever waits for nobody."""
    return True


class Actor:
    """One coroutine of one process; `at` is where it stands, `told` what it is told to meet."""

    def __init__(self, process: int, name: str, work: Callable[[], Awaitable[object]]) -> None:
        self.process, self.name = process, name
        self.at = "begin"
        self.told = ""
        self.may = always
        self._go, self._stands = asyncio.Event(), asyncio.Event()
        self.task = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Callable[[], Awaitable[object]]) -> object:
        _acting.set(self)
        await park("begin")
        return await work()

    @property
    def runnable(self) -> bool:
        """Whether a step would lead anywhere."""
        return not self.task.done() and self.may()

    async def step(self, told: str = "") -> None:
        """Go on to the next stop, or to the end."""
        self.told = told
        self._stands.clear()
        self._go.set()
        stands = asyncio.ensure_future(self._stands.wait())
        await asyncio.wait([stands, self.task], return_when=asyncio.FIRST_COMPLETED)
        stands.cancel()

    async def stop(self, at: str, may: Callable[[], bool]) -> str:
        """Stand here until told to go on."""
        self.at, self.may = at, may
        self._stands.set()
        await self._go.wait()
        self._go.clear()
        self.at, self.may = "running", always
        return self.told

    async def die(self) -> None:
        """As its process dies: it never hears of anything again."""
        self.task.cancel()
        await asyncio.wait([self.task])


def acting() -> Actor | None:
    """Who runs this code; None for the test itself."""
    return _acting.get()


async def park(at: str, may: Callable[[], bool] = always) -> str:
    """Stop here, if an actor comes by."""
    actor = _acting.get()
    return "" if actor is None else await actor.stop(at, may)
