"""What people say of tool definitions: accepted as they were shown, or refused.

Every answer is about the digest that the person was shown; another one has been listed meanwhile:
`Conflict`. What was remembered of the tool's calls ends with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from sqlmodel import col

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor
from gateway.errors import Conflict, NotFound
from gateway.registry import ending
from gateway.registry.changes import By, Change
from gateway.registry.servers import find
from gateway.registry.tools import NO_PIN, ToolState, state_of
from gateway.registry.versions import lock_config
from gateway.store.tables import Grant, Server, ToolDefinition


async def accept(
    ledger: Ledger, label: str, seen: tuple[str, str], *, actor: Actor, now: datetime
) -> ToolState:
    """Pin what a tool's server lists now. `seen` is (tool, digest of what the person was shown)."""
    tool, digest = seen
    return (await accept_all(ledger, label, {tool: digest}, actor=actor, now=now))[0]


async def accept_all(
    ledger: Ledger, label: str, seen: Mapping[str, str], *, actor: Actor, now: datetime
) -> list[ToolState]:
    """Pin what the server lists of these tools now: all of them, or none. `seen` is digest by tool.

    Raises `NotFound` for a tool that was never listed, `Conflict` when one was listed otherwise.
    """
    async with _answering(ledger, label, By(actor, now)) as (change, server):
        rows = [await _shown(change, server, tool, seen[tool]) for tool in sorted(seen)]
        for row in rows:
            await _accept(change, server, row)
    return [state_of(row) for row in rows]


async def refuse(
    ledger: Ledger, label: str, seen: tuple[str, str], *, actor: Actor, now: datetime
) -> ToolState:
    """Deny every call of a tool until somebody accepts it. `seen` as for `accept`."""
    tool, digest = seen
    async with _answering(ledger, label, By(actor, now)) as (change, server):
        row = await _shown(change, server, tool, digest)
        if row.refused_at is None:
            row.refused_at, row.refused_by = now, actor.ref
            change.session.add(row)
            change.record("tooldef.refused", _subject(server, row), {"tooldef": digest})
            mine, by = ending.of_tool(server.id, tool), (actor, actor.ref)
            await ending.end_grants(change.tx, mine, why=ending.REVOKED, by=by, now=now)
    return state_of(row)


@contextlib.asynccontextmanager
async def _answering(ledger: Ledger, label: str, by: By) -> AsyncIterator[tuple[Change, Server]]:
    async with ledger.transaction() as tx:
        await lock_config(tx.session)
        server = await find(tx.session, label)
        if server is None:
            raise NotFound(f"No server has the label {label!r}.", code="server_unknown")
        yield Change(tx, by.actor, by.now), server
    await tx.sealed()


async def _shown(change: Change, server: Server, tool: str, digest: str) -> ToolDefinition:
    row = await change.session.get(ToolDefinition, (server.id, tool))
    if row is None:
        raise NotFound(
            f"The server {server.label!r} lists no tool {tool[:80]!r}.", code="tool_unknown"
        )
    if row.listed_digest != digest:
        raise Conflict(
            f"Another definition of {tool[:80]!r} has been listed since you looked; look at that "
            "one.",
            code="tool_definition_stale",
        )
    return row


async def _accept(change: Change, server: Server, row: ToolDefinition) -> None:
    if row.pinned_digest == row.listed_digest and row.refused_at is None:
        return
    fields: dict[str, Any] = {"tooldef": row.listed_digest}
    if row.pinned_digest != NO_PIN:
        fields["before"] = row.pinned_digest
    row.pinned_digest, row.pinned = row.listed_digest, row.listed
    row.pinned_at, row.pinned_by = change.now, change.actor.ref
    row.refused_at = row.refused_by = None
    change.session.add(row)
    change.record("tooldef.accepted", _subject(server, row), fields)
    another: Any = col(Grant.definition_digest).is_distinct_from(row.listed_digest)
    mine = ending.of_tool(server.id, row.name)
    await ending.end_grants(change.tx, mine, another, why=ending.DEFINITION, now=change.now)


def _subject(server: Server, row: ToolDefinition) -> dict[str, str]:
    return {"server": server.label, "tool": row.name}
