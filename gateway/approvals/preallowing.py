"""Leave given beforehand: for tools of which every call is allowed, Azure need not ask.

Only where nothing could hold or deny a call: one unconditional rule allows it and no other rule
could say otherwise, the app does not ask for it either, nothing is paused, and the tool is as it
was pinned. What Azure is told stands in the signed ledger first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.approvals import tooldefs
from gateway.approvals.decisions import Approvals
from gateway.approvals.holding import Leave, Rules
from gateway.approvals.kept import Kept
from gateway.audit import records
from gateway.audit.records import SYSTEM
from gateway.exchange.messages import ServerFacts
from gateway.policy import always_allows
from gateway.registry.versions import hold_config
from gateway.store.tables import ToolDefinition

#: As many names as one record holds; the others are asked for as ever.
_MOST_NAMES, _MOST_CHARACTERS = 40, 1500


@dataclass(frozen=True)
class Coming:
    """A round about to be sent: its number, and the servers behind its labels.

    `config_version` is that of the configuration that the rules were taken from.
    """

    round: int
    servers: Mapping[str, ServerFacts]
    config_version: int


async def give_leave(
    context: Approvals, kept: Kept, coming: Coming, rules: Rules, *, now: datetime
) -> dict[tuple[str, str], Leave]:
    """Say, by label and tool, what need not be asked for; recorded, and in the signed head."""
    if rules.pauses:
        # Whatever they cover: while somebody has stopped something, everything is asked for.
        return {}
    async with context.db.reading() as session:
        tools = {
            label: await _as_pinned(session, kept, server)
            for label, server in coming.servers.items()
        }
    found = {
        (label, tool): Leave(coming.servers[label], rule, rules.policy_digest)
        for label, names in tools.items()
        for tool, rule in _always_allowed(kept, label, coming.servers[label], rules, names)
    }
    if not found:
        return {}
    async with context.ledger.transaction() as tx:
        if await hold_config(tx.session) != coming.config_version:
            return {}  # changed meanwhile, by a pause perhaps: everything is asked for
        for record in _records(kept, coming, found, now):
            tx.record(record)
    await tx.sealed()
    return found


async def _as_pinned(session: AsyncSession, kept: Kept, server: ServerFacts) -> list[str]:
    mine = select(ToolDefinition).where(col(ToolDefinition.server_id) == server.id)
    return sorted(
        row.name
        for row in await session.exec(mine)
        if not tooldefs.refused(row)
        and not tooldefs.unsettled(row, tooldefs.shown_to(kept, server.id, row.name))
    )


def _always_allowed(
    kept: Kept, label: str, server: ServerFacts, rules: Rules, names: list[str]
) -> Iterator[tuple[str, str]]:
    strict = rules.strict.get(label, frozenset())
    if strict is None:
        return
    left = _MOST_CHARACTERS
    for number, tool in enumerate(names):
        rule = always_allows(rules.policy, kept.app_name, server.label, tool)
        left -= len(tool.encode())
        if number >= _MOST_NAMES or left < 0:
            return
        if rule is not None and tool not in strict:
            yield tool, rule


def _records(
    kept: Kept, coming: Coming, found: Mapping[tuple[str, str], Leave], now: datetime
) -> Iterator[records.Record]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for (label, tool), leave in found.items():
        groups.setdefault((label, leave.rule, leave.policy_digest), []).append(tool)
    for (label, rule, policy), tools in groups.items():
        yield records.make(
            "call.preallowed",
            now=now,
            actor=SYSTEM,
            subject={**kept.subject, "server": coming.servers[label].label},
            key=f"{coming.round}:{label[:60]}:{rule}",
            fields={"policy": policy, "rule": rule, "tools": tools, "round": coming.round},
        )
