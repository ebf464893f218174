"""Tool definitions: pinned when first seen, compared whenever a server lists its tools.

A definition that differs from its pin stays pending until a person accepts it; what is done with
calls to such a tool is not decided here. The digest covers the whole definition as listed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger
from gateway.audit.records import SYSTEM, Actor
from gateway.errors import Conflict, NotFound, Refused
from gateway.registry import ending
from gateway.registry.changes import Change
from gateway.registry.servers import find
from gateway.registry.versions import lock_config
from gateway.store.database import Database
from gateway.store.tables import Grant, Server, ToolDefinition

MAX_TOOLS = 500
MAX_DEFINITION = 65_536
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class ToolState:
    """A tool as pinned and as last listed. `changed`: a person has to accept what is listed."""

    name: str
    pinned_digest: str
    pinned: Mapping[str, Any]
    listed_digest: str
    listed: Mapping[str, Any]
    pinned_at: datetime
    pinned_by: str
    listed_at: datetime

    @property
    def changed(self) -> bool:
        """Whether the definition differs from its pin."""
        return self.pinned_digest != self.listed_digest


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    digest: str
    definition: dict[str, Any]


async def observe(
    ledger: Ledger, server_id: str, definitions: Sequence[Mapping[str, Any]], *, now: datetime
) -> Mapping[str, ToolState]:
    """Take note of what a server lists: pin what is new, mark what differs from its pin.

    `definitions` are the entries of an `mcp_list_tools` item. Returns every listed tool by name.
    Writes, in one transaction with its records, only when something is new. Raises `Refused`
    (`tool_definition_invalid`) when a list cannot be relied on; nothing is pinned then.
    """
    listed = _read(definitions)
    async with ledger.db.reading() as session:
        known = await _rows(session, server_id)
    if any(_is_news(known.get(item.name), item) for item in listed):
        async with ledger.transaction() as tx:
            await lock_config(tx.session)
            change = Change(tx, SYSTEM, now)
            server = await tx.session.get(Server, server_id)
            if server is None:
                raise NotFound("The server is not registered any more.", code="server_unknown")
            known = await _rows(tx.session, server_id)
            for item in listed:
                if _is_news(known.get(item.name), item):
                    known[item.name] = await _note(change, server, known.get(item.name), item)
    return MappingProxyType({item.name: _state(known[item.name]) for item in listed})


async def accept(
    ledger: Ledger, label: str, seen: tuple[str, str], *, actor: Actor, now: datetime
) -> ToolState:
    """Pin what a tool's server lists now. `seen` is (tool, digest of what the person was shown).

    Raises `Conflict` when another definition has been listed meanwhile.
    """
    tool, digest = seen
    async with ledger.transaction() as tx:
        await lock_config(tx.session)
        server = await find(tx.session, label)
        row = None if server is None else await tx.session.get(ToolDefinition, (server.id, tool))
        if row is None:
            raise NotFound(f"The server {label!r} lists no tool {tool!r}.", code="tool_unknown")
        if row.listed_digest != digest:
            raise Conflict(
                "Another definition has been listed since you looked; look at that one.",
                code="tool_definition_stale",
            )
        if row.pinned_digest != digest:
            fields = {"tooldef": digest, "before": row.pinned_digest}
            row.pinned_digest, row.pinned = row.listed_digest, row.listed
            row.pinned_at, row.pinned_by = now, actor.ref
            tx.session.add(row)
            subject = {"server": label, "tool": tool}
            Change(tx, actor, now).record("tooldef.accepted", subject, fields)
    await tx.sealed()
    return _state(row)


async def listing(db: Database, label: str) -> list[ToolState]:
    """The known tools of a server, changed ones first, then by name."""
    async with db.reading() as session:
        server = await find(session, label)
        if server is None:
            raise NotFound(f"No server has the label {label!r}.", code="server_unknown")
        states = [_state(row) for row in (await _rows(session, server.id)).values()]
    return sorted(states, key=lambda state: (not state.changed, state.name))


async def known(db: Database, server_id: str) -> Mapping[str, ToolState]:
    """The known tools of a server by name."""
    async with db.reading() as session:
        rows = await _rows(session, server_id)
    return MappingProxyType({name: _state(row) for name, row in rows.items()})


def digest_definition(definition: Mapping[str, Any]) -> str:
    """`sha256:…` over the definition as JSON with sorted members and no spaces, in UTF-8."""
    return _digest(_encode(definition))


def _read(definitions: Sequence[Mapping[str, Any]]) -> list[_Listed]:
    if len(definitions) > MAX_TOOLS:
        raise _refused(f"it lists more than {MAX_TOOLS} tools")
    listed: dict[str, _Listed] = {}
    for definition in definitions:
        name = definition.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise _refused(f"a tool has no name of 1 to {_MAX_NAME} characters")
        if name in listed:
            raise _refused("it lists two tools of one name")
        encoded = _encode(definition)
        if len(encoded) > MAX_DEFINITION:
            raise _refused(f"a definition is larger than {MAX_DEFINITION} bytes")
        listed[name] = _Listed(name, _digest(encoded), dict(definition))
    return list(listed.values())


def _encode(definition: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(
            definition,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode()
    except (ValueError, TypeError, RecursionError):
        raise _refused("a definition is not plain JSON text") from None


def _digest(encoded: bytes) -> str:
    return "sha256:" + hashlib.sha256(encoded).hexdigest()


def _is_news(row: ToolDefinition | None, item: _Listed) -> bool:
    return row is None or row.listed_digest != item.digest


async def _note(
    change: Change, server: Server, row: ToolDefinition | None, item: _Listed
) -> ToolDefinition:
    subject = {"server": server.label, "tool": item.name}
    await _end_grants(change, server, item)
    if row is None:
        row = ToolDefinition(
            server_id=server.id,
            name=item.name,
            pinned_digest=item.digest,
            pinned=item.definition,
            listed_digest=item.digest,
            listed=item.definition,
            pinned_at=change.now,
            pinned_by=change.actor.ref,
            listed_at=change.now,
        )
        change.record("tooldef.pinned", subject, {"tooldef": item.digest, "source": server.pin})
    else:
        row.listed_digest, row.listed = item.digest, item.definition
        row.listed_at = change.now
        if row.pinned_digest != item.digest:
            fields = {
                "tooldef": item.digest,
                "before": row.pinned_digest,
                "changes": _changed_members(row.pinned, item.definition),
            }
            change.record("tooldef.changed", subject, fields)
    change.session.add(row)
    await change.session.flush()
    return row


async def _end_grants(change: Change, server: Server, item: _Listed) -> None:
    """What was approved was approved of another definition."""
    of_another: Any = col(Grant.definition_digest).is_distinct_from(item.digest)
    mine = ending.of_tool(server.id, item.name)
    await ending.end_grants(change.tx, mine, of_another, why=ending.DEFINITION, now=change.now)


def _changed_members(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = sorted({*before, *after})
    return [name[:80] for name in names if before.get(name) != after.get(name)][:20]


async def _rows(session: AsyncSession, server_id: str) -> dict[str, ToolDefinition]:
    mine = select(ToolDefinition).where(col(ToolDefinition.server_id) == server_id)
    return {row.name: row for row in await session.exec(mine)}


def _state(row: ToolDefinition) -> ToolState:
    return ToolState(
        name=row.name,
        pinned_digest=row.pinned_digest,
        pinned=row.pinned,
        listed_digest=row.listed_digest,
        listed=row.listed,
        pinned_at=row.pinned_at,
        pinned_by=row.pinned_by,
        listed_at=row.listed_at,
    )


def _refused(what: str) -> Refused:
    return Refused(
        f"The server's list of tools is refused: {what}.", code="tool_definition_invalid"
    )
