"""Values of a vault elsewhere: asked for once by many at once, and kept for a moment at most.

Whoever opens for a fresh purpose gets a value that was asked for after they came. A value is used
again only where that is allowed, and until anything goes wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import Unavailable
from gateway.store.references import SecretRef
from gateway.vault.secret import Purpose, Secret
from gateway.vault.store import Remote


@dataclass(slots=True)
class _Known:
    """The last answer for one reference: its number, since when it is known, who waits."""

    answer: Secret | Unavailable | None = None
    number: int = 0
    since: float = float("-inf")
    waiting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Shared:
    """A store that is asked less often than its values are needed. `seconds`: 0 keeps nothing."""

    def __init__(self, store: Remote, seconds: float, now: Callable[[], float]) -> None:
        self._store = store
        self._seconds = seconds
        self._now = now
        self._known: dict[SecretRef, _Known] = {}
        self._number = 0

    def __repr__(self) -> str:
        return f"<Shared {self._store!r}>"

    async def open(self, ref: SecretRef, purpose: Purpose) -> Secret:
        """The value of `ref`, fresh where the purpose asks for it."""
        self._forget()
        known = self._known.setdefault(ref, _Known())
        if not purpose.fresh and isinstance(known.answer, Secret) and not self._old(known):
            return known.answer
        came = self._next()
        known.waiting += 1
        try:
            async with known.lock:
                # An answer to somebody who asked after we came is good for us, too.
                if known.number < came:
                    await self._ask(known, ref, purpose)
                return _told(known.answer)
        finally:
            known.waiting -= 1

    async def ping(self) -> None:
        """Ask the store itself."""
        await self._store.ping()

    async def close(self) -> None:
        """Keep nothing, and close the store."""
        self._known.clear()
        await self._store.close()

    async def _ask(self, known: _Known, ref: SecretRef, purpose: Purpose) -> None:
        number, since = self._next(), self._now()
        known.answer = None
        try:
            answer: Secret | Unavailable = await self._store.open(ref, purpose)
        except Unavailable as error:
            answer = error
        known.answer, known.number, known.since = answer, number, since

    def _forget(self) -> None:
        for ref, known in list(self._known.items()):
            if not known.waiting and self._old(known):
                del self._known[ref]

    def _old(self, known: _Known) -> bool:
        return self._now() - known.since >= self._seconds

    def _next(self) -> int:
        self._number += 1
        return self._number


def _told(answer: Secret | Unavailable | None) -> Secret:
    if isinstance(answer, Unavailable):
        raise Unavailable(answer.message, code=answer.code)
    assert answer is not None  # noqa: S101  whoever has the lock has an answer
    return answer
