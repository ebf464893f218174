"""What Azure need not ask for in the running round, and the calls that it makes without asking.

Only where the installation wants it (`allow_at_azure`); the leave stands in the signed ledger
before the round is sent. See `gateway.approvals.preallowing`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gateway.approvals import holding, preallowing
from gateway.exchange.enforcement import with_leave
from gateway.exchange.messages import Forward, Mismatch, Ran, ServerFacts
from gateway.proxy.assignment import Tools
from gateway.proxy.live import Live


class AtAzure:
    """The leave of one exchange, given anew for each of its rounds."""

    def __init__(self, tools: Tools, live: Live) -> None:
        self._tools = tools
        self._kept = live.kept
        self._exchange = live.exchange
        self._leave: dict[tuple[str, str], holding.Leave] = {}  # by label and tool

    @property
    def given(self) -> bool:
        """Whether Azure may make calls of the running round by itself."""
        return bool(self._leave)

    async def give(
        self, turn: Forward, servers: Mapping[str, ServerFacts], rules: holding.Rules
    ) -> Forward:
        """The round with what Azure need not ask for. Not where this process may not be there to
        see what is called, or the app goes on by itself.
        """
        plan = self._exchange.plan
        self._leave = {}
        if not self._tools.allow_at_azure or self._kept.background or plan.show_approvals:
            return turn
        coming = preallowing.Coming(turn.round, servers, self._tools.directory.view.version)
        self._leave = await preallowing.give_leave(
            self._tools.context, self._kept, coming, rules, now=self._tools.clock()
        )
        if not self._leave:
            return turn
        tools: dict[str, list[str]] = {}
        for label, tool in self._leave:
            tools.setdefault(label, []).append(tool)
        self._exchange.give_leave(tools)
        body = with_leave(turn.body, turn.bindings, tools)
        replay = turn.replay and with_leave(turn.replay, turn.bindings, tools)
        return dataclasses.replace(turn, body=body, replay=replay)

    async def record(self, ran: Ran) -> tuple[str, Mismatch] | None:
        """Record a call that was made on leave; the id and what is wrong, if it was another tool
        than the one that was pinned.
        """
        call = ran.call
        leave = self._leave[call.server_label, call.tool]
        approval_id, changed = await holding.record_ran(
            self._tools.context, self._kept, ran, leave, now=self._tools.clock()
        )
        if not changed:
            return None
        # Azure saw the new definition before anybody here could.
        why = "called without asking, and its definition has changed"
        return approval_id, Mismatch(None, call.server_label, call.tool, why)
