"""The background loop: deny what nobody decided in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.approvals import decisions
from gateway.services import Services
from gateway.telemetry import log

_PAUSE = 1.0


@dataclass(frozen=True)
class Jobs:
    """What runs beside the edges for as long as the process lives."""

    services: Services

    async def run(self) -> None:
        """Go round once a second, for ever."""
        while True:
            await _carefully("requests.expire", self._expire)
            await asyncio.sleep(_PAUSE)

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
