"""Keeping up with the other replicas: what they took, what they left, who waits where.

Runs beside the drivers where several gateways share a database. A hint brings a look forward; the
pause between two looks is what bounds how long anything can be overlooked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

from gateway.approvals import replicas
from gateway.proxy.assignment import Tools
from gateway.proxy.live import Hub, Live
from gateway.proxy.recovery import Recovery
from gateway.telemetry import log

_PATIENCE = 5.0  # seconds for the database, of a process that ends


class Keeper:
    """One per process; nothing to do where there can be one process only."""

    def __init__(self, tools: Tools, hub: Hub, recovery: Recovery) -> None:
        self._tools, self._hub, self._recovery = tools, hub, recovery
        self._hinted = asyncio.Event()

    def hint(self, _: str = "") -> None:
        """Some exchange was changed by another replica."""
        self._hinted.set()

    async def run(self) -> None:
        """Look for ever."""
        if not self._tools.lease.shared:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_often())
            group.create_task(self._attend())

    async def look(self) -> None:
        """Notice what was taken away or withdrawn, and take up what is free."""
        context, lease = self._tools.context, self._tools.lease
        driven = {live.kept.id: live for live in self._hub.driven()}
        for turned in await replicas.turned(context.db, lease, list(driven)):
            live = driven[turned.id]
            if turned.withdrawn is None:
                live.lose()
            elif live.cancel is not None:
                live.cancel(turned.withdrawn)
            await context.wakeups.notify([turned.id])
        if context.ledger.healthy and not lease.leaving:
            await self._recovery.run()

    async def hand_over(self) -> None:
        """Leave what waits to the other replicas, if there are any; what is being sent is not."""
        await _carefully(self._hand_over)

    async def _hand_over(self) -> None:
        lease = self._tools.lease
        async with asyncio.timeout(_PATIENCE):
            if not lease.shared or await lease.alone():
                return
        lease.leaving = True
        await self._tools.context.wakeups.notify([live.kept.id for live in self._hub.driven()])

    async def _look_often(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tools.lease.pause):
                    await self._hinted.wait()
            self._hinted.clear()
            await _carefully(self.look)

    async def _attend(self) -> None:
        """Tell the others who waits here, so that a repeated request knows what it may join."""
        self._hub.noticed = {}
        while True:
            await self._hub.stirred.wait()
            self._hub.stirred.clear()
            noticed, self._hub.noticed = self._hub.noticed, {}
            await _carefully(partial(self._note, tuple(noticed.values())))

    async def _note(self, noticed: tuple[Live, ...]) -> None:
        context, lease = self._tools.context, self._tools.lease
        for gone in (True, False):
            moved = [
                live
                for live in noticed
                if live.left != gone and (live.listeners == 0 and live.joinable) == gone
            ]
            if moved:
                left_at = self._tools.clock() if gone else None
                ids = [live.kept.id for live in moved]
                await replicas.attend(context.db, lease, ids, left_at=left_at)
            for live in moved:
                live.left = gone


async def _carefully(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception as error:
        log.warning("replicas.look_failed", error=type(error).__name__)
