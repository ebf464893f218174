"""What Azure reports about the calls of one exchange, recorded as it comes. Step 5 of the path.

Tools that a server lists, outcomes of calls that were released, calls that were made on leave, and
what nobody approved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from gateway.approvals import release
from gateway.exchange.messages import Listed, Mismatch, Observed, Ran, ServerFacts
from gateway.proxy.assignment import Tools
from gateway.proxy.leave import AtAzure
from gateway.proxy.live import Live
from gateway.registry import tools as tool_definitions
from gateway.registry.definitions import canonical
from gateway.telemetry import log


class Reports:
    """Those of one exchange. `approvals` maps Azure's request ids to ours; `sending` are the
    approvals that are marked as being sent, and not observed yet.
    """

    def __init__(self, tools: Tools, live: Live, approvals: Mapping[str, str]) -> None:
        self._tools = tools
        self._kept = live.kept
        self._plan = live.exchange.plan
        self.approvals = dict(approvals)
        self.sending: set[str] = set()
        self.leave = AtAzure(tools, live)

    async def take(self, report: Listed | Observed | Ran | Mismatch) -> None:
        """Record what is reported. What a mismatch is about must not be told on before."""
        match report:
            case Listed():
                await self._listed(report)
            case Observed():
                await self._observed(report)
            case Ran():
                if (wrong := await self.leave.record(report)) is not None:
                    await self._alarm(*wrong)
            case Mismatch():
                await self._alarm(self.approvals.get(report.request_id or ""), report)
            case _:
                assert_never(report)

    async def unknown(self) -> None:
        """Nothing was reported of what was sent, and nothing will be."""
        for approval_id in tuple(self.sending):
            await self._observe(approval_id, Observed(approval_id, "unknown"))

    def servers(self) -> dict[str, ServerFacts]:
        """The servers of the request that are still registered, by label."""
        view = self._tools.directory.view
        return {
            binding.server_label: view.servers[binding.server_id].facts()
            for binding in self._plan.bindings
            if binding.server_id in view.servers
        }

    async def _listed(self, listed: Listed) -> None:
        server = self.servers().get(listed.server_label)
        if server is not None:
            ledger, now = self._tools.context.ledger, self._tools.clock()
            definitions = [canonical(tool) for tool in listed.tools]
            states = await tool_definitions.observe(
                ledger, server.id, definitions, now=now, whole=self._is_whole(listed)
            )
            shown = {name: state.listed_digest for name, state in states.items()}
            self._kept.note_shown(server.id, shown)

    def _is_whole(self, listed: Listed) -> bool:
        """Whether the request leaves the list as long as the server makes it."""
        entries = [
            self._plan.body["tools"][binding.tool_index]
            for binding in self._plan.bindings
            if binding.server_label == listed.server_label
        ]
        return all("allowed_tools" not in entry for entry in entries)

    async def _observed(self, observed: Observed) -> None:
        approval_id = self.approvals.get(observed.request_id)
        if approval_id is not None and approval_id in self.sending:
            await self._observe(approval_id, observed)

    async def _observe(self, approval_id: str, observed: Observed) -> None:
        context, now = self._tools.context, self._tools.clock()
        await release.observe(context, self._kept, approval_id, observed, now=now)
        self.sending.discard(approval_id)

    async def _alarm(self, approval_id: str | None, mismatch: Mismatch) -> None:
        log.error("execution.mismatch", exchange=self._kept.id, why=mismatch.why)
        context, now = self._tools.context, self._tools.clock()
        await release.mismatch(context, self._kept, mismatch, approval_id, now=now)
