"""One piece of work for many who want its outcome at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from gateway.errors import Unavailable

T = TypeVar("T")


class Flight(Generic[T]):
    """`share` does the work of a key once for all who ask while it goes on.

    A failure is everybody's, so that a broken server is not asked once for each. When the one
    whose call does the work is cancelled, another one of those who wait begins anew.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Future[T | Unavailable | None]] = {}

    async def share(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, by this call or by one that is under way; raises `Unavailable`."""
        while (running := self._running.get(key)) is not None:
            # Shielded: who gives up waiting takes nothing away from the others.
            outcome = await asyncio.shield(running)
            if outcome is not None:
                return _told(outcome)
        return _told(await self._do(key, work))

    async def _do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T | Unavailable:
        future = self._running[key] = asyncio.get_running_loop().create_future()
        outcome: T | Unavailable | None = None
        try:
            outcome = await work()
        except Unavailable as error:
            outcome = error
        finally:
            del self._running[key]
            future.set_result(outcome)
        return outcome


def _told(outcome: T | Unavailable) -> T:
    if isinstance(outcome, Unavailable):
        # Anew for each: a traceback that is shared would grow with everybody who sees it.
        raise Unavailable(outcome.message, code=outcome.code, status=outcome.status)
    return outcome
