"""Asks Azure what became of calls whose outcome is unknown. Reads only: nothing is sent again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.approvals import evidence, late
from gateway.approvals.decisions import Approvals
from gateway.approvals.evidence import Case
from gateway.approvals.late import Finding
from gateway.errors import GatepassError
from gateway.exchange.messages import Json
from gateway.proxy.azure import Azure, Wire
from gateway.telemetry import Clock, log

_PATIENCE = 10.0  # seconds for one answer: the next look comes anyway
_PAUSE = 0.5  # seconds between looks


@dataclass(frozen=True)
class Gathering:
    """Looks into what is due; any number of processes may."""

    context: Approvals
    azure: Azure
    clock: Clock

    async def run(self) -> None:
        """Look for ever. Apart from the other jobs, because it may take longer than they can."""
        while True:
            try:
                await self.once()
            except Exception as error:
                log.warning("job.failed", job="evidence.gather", error=type(error).__name__)
            await asyncio.sleep(_PAUSE)

    async def once(self) -> None:
        """One look at everything that is due."""
        for case in await evidence.due(self.context, now=self.clock()):
            finding = await self._look(case)
            noted = await late.note(
                self.context, case.approval_id, finding, number=case.number, now=self.clock()
            )
            if noted:
                log.info("execution.evidence", approval=case.approval_id, finding=finding.what)

    async def _look(self, case: Case) -> Finding:
        if case.response_id is not None:
            shown = await self._ask(f"responses/{case.response_id}", {})
            if shown is not None:
                return evidence.of_response(case, shown)
        if case.conversation_id is not None:
            path = f"conversations/{case.conversation_id}/items"
            shown = await self._ask(path, {"limit": "100", "order": "desc"})
            if shown is not None:
                where = case.conversation_id
                found = evidence.of_items(case, shown.get("data"), where)
                return found or Finding("absent", where)
        return Finding("unavailable", case.response_id or case.conversation_id or "no id is known")

    async def _ask(self, path: str, query: dict[str, str | list[str]]) -> Json | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                shown, _ = await self.azure.ask("GET", path, Wire({}, query))
        except (GatepassError, TimeoutError) as error:
            log.info("execution.evidence_unavailable", error=type(error).__name__)
            return None
        return shown
