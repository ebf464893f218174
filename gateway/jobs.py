"""The background loop: what becomes due without anybody doing anything.

Every replica runs it; each step is a compare-and-set, so that one of them does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.approvals import decisions, emergency, escalation, review
from gateway.services import Services
from gateway.telemetry import log

_PAUSE = 0.5


@dataclass(frozen=True)
class Jobs:
    """What runs beside the edges for as long as the process lives."""

    services: Services

    async def run(self) -> None:
        """Go round twice a second, for ever."""
        while True:
            # Before what is late is denied: what was approved in time is no more to be undone.
            await _carefully("requests.settle", self._settle)
            await _carefully("requests.escalate", self._escalate)
            await _carefully("requests.expire", self._expire)
            await _carefully("alarms.overdue", self._overdue)
            await asyncio.sleep(_PAUSE)

    async def _settle(self) -> None:
        await review.settle_due(self.services.approvals, now=self.services.clock())

    async def _escalate(self) -> None:
        count = await escalation.escalate_due(self.services.approvals, now=self.services.clock())
        if count:
            log.info("requests.escalated", count=count)

    async def _overdue(self) -> None:
        count = await emergency.note_overdue(self.services.approvals, now=self.services.clock())
        if count:
            log.warning("alarms.overdue", count=count)

    async def _expire(self) -> None:
        expired = await decisions.expire_due(self.services.approvals, now=self.services.clock())
        if expired:
            log.info("requests.expired", count=expired)


async def _carefully(name: str, job: Callable[[], Awaitable[None]]) -> None:
    """One failed round of a job is logged; the next may find its parts working again."""
    try:
        await job()
    except Exception as error:
        log.warning("job.failed", job=name, error=type(error).__name__)
