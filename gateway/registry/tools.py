"""Tool definitions: pinned when first seen or by a person, compared with every list of a server.

A list comes from an exchange (what Azure was told, and with it the model) or from a probe (what
the gateway was told). What differs from its pin, what is new on a server that has been listed
before, and what is listed no more waits for a person; what is done with calls to such a tool is
not decided here. The digest covers the whole definition as listed.
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
from gateway.audit.records import SYSTEM
from gateway.errors import NotFound, Refused
from gateway.policy import strangers
from gateway.policy.difference import Change as Changed
from gateway.policy.difference import difference
from gateway.policy.risk import RiskSignal
from gateway.registry import ending
from gateway.registry.changes import Change
from gateway.registry.servers import find
from gateway.registry.versions import lock_config
from gateway.store.database import Database
from gateway.store.tables import Grant, Server, ToolDefinition

MAX_TOOLS = 500
MAX_DEFINITION = 65_536
_MAX_NAME = 200
#: A pin that equals no listing.
NO_PIN = ""


@dataclass(frozen=True, slots=True)
class ToolState:
    """A tool as pinned and as last listed; nothing is pinned of a new one.

    `source` is who saw the listing: stream | probe. `signs` is what stands out in its texts.
    """

    name: str
    pinned_digest: str | None
    pinned: Mapping[str, Any] | None
    listed_digest: str
    listed: Mapping[str, Any]
    pinned_at: datetime | None
    pinned_by: str | None
    listed_at: datetime
    source: str | None
    signs: tuple[RiskSignal, ...]
    gone_at: datetime | None
    refused_at: datetime | None
    refused_by: str | None

    @property
    def changed(self) -> bool:
        """Whether the definition differs from its pin, or has none."""
        return self.pinned_digest != self.listed_digest

    @property
    def state(self) -> str:
        """refused | gone | new | changed | pinned; calls pass without people when `pinned`."""
        if self.refused_at is not None:
            return "refused"
        if self.gone_at is not None:
            return "gone"
        if self.pinned_digest is None:
            return "new"
        return "changed" if self.changed else "pinned"

    @property
    def difference(self) -> tuple[Changed, ...]:
        """Where the listed definition differs from the pinned one, path by path."""
        return difference(self.pinned or {}, self.listed) if self.changed else ()


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    digest: str
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _List:
    """A list that can be relied on. `whole`: nobody narrowed it to some tools."""

    tools: tuple[_Listed, ...]
    source: str
    whole: bool

    def missing(self, known: Mapping[str, ToolDefinition]) -> list[ToolDefinition]:
        """The known tools that are gone, and were not before."""
        if not self.whole:
            return []
        names = {item.name for item in self.tools}
        return [row for name, row in known.items() if name not in names and row.gone_at is None]


async def observe(
    ledger: Ledger,
    server_id: str,
    definitions: Sequence[Mapping[str, Any]],
    *,
    now: datetime,
    source: str = "stream",
    whole: bool = True,
) -> Mapping[str, ToolState]:
    """Take note of what a server lists: pin what is new where that is wished, mark what differs.

    `definitions` are the entries of a list in their canonical form; `source` is stream | probe;
    `whole` is False where the list was narrowed to some tools, which says nothing about others.
    Returns every listed tool by name. Writes, in one transaction with its records, only when
    something is new. Raises `Refused` (`tool_definition_invalid`) when a list cannot be relied on:
    nothing is pinned then, and no tool of the server counts as listed any more.
    """
    try:
        listed = _List(_read(definitions), source, whole)
    except Refused as error:
        why = error.message.partition(": ")[2]
        await _note_unreliable(ledger, server_id, source, why, now)
        raise
    async with ledger.db.reading() as session:
        listed_at, known = await _known(session, server_id)
    if _is_news(listed, listed_at, known):
        async with ledger.transaction() as tx:
            await lock_config(tx.session)
            server = await _server(tx.session, server_id)
            _, known = await _known(tx.session, server_id)
            await _note_list(Change(tx, SYSTEM, now), server, listed, known)
    return MappingProxyType({item.name: state_of(known[item.name]) for item in listed.tools})


async def listing(db: Database, label: str) -> list[ToolState]:
    """The known tools of a server: first those that wait for a person, then by name."""
    async with db.reading() as session:
        server = await find(session, label)
        if server is None:
            raise NotFound(f"No server has the label {label!r}.", code="server_unknown")
        _, rows = await _known(session, server.id)
    states = [state_of(row) for row in rows.values()]
    return sorted(states, key=lambda state: (state.state == "pinned", state.name))


async def read(db: Database, label: str, tool: str) -> ToolState:
    """One tool of a server; `NotFound` when the server has never listed it."""
    async with db.reading() as session:
        server = await find(session, label)
        row = None if server is None else await session.get(ToolDefinition, (server.id, tool))
    if row is None:
        raise NotFound(f"The server {label!r} lists no tool {tool[:80]!r}.", code="tool_unknown")
    return state_of(row)


async def known(db: Database, server_id: str) -> Mapping[str, ToolState]:
    """The known tools of a server by name."""
    async with db.reading() as session:
        _, rows = await _known(session, server_id)
    return MappingProxyType({name: state_of(row) for name, row in rows.items()})


def digest_definition(definition: Mapping[str, Any]) -> str:
    """`sha256:…` over the definition as JSON with sorted members and no spaces, in UTF-8."""
    return _digest(_encode(definition))


def state_of(row: ToolDefinition) -> ToolState:
    """What a row says."""
    is_new = row.pinned_digest == NO_PIN
    return ToolState(
        name=row.name,
        pinned_digest=None if is_new else row.pinned_digest,
        pinned=None if is_new else row.pinned,
        listed_digest=row.listed_digest,
        listed=row.listed,
        pinned_at=None if is_new else row.pinned_at,
        pinned_by=None if is_new else row.pinned_by,
        listed_at=row.listed_at,
        source=row.source,
        signs=tuple(RiskSignal(sign["code"], sign["sentence"]) for sign in row.signs or ()),
        gone_at=row.gone_at,
        refused_at=row.refused_at,
        refused_by=row.refused_by,
    )


# --- reading a list -------------------------------------------------------------------------


def _read(definitions: Sequence[Mapping[str, Any]]) -> tuple[_Listed, ...]:
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
    return tuple(listed.values())


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


def _refused(what: str) -> Refused:
    return Refused(
        f"The server's list of tools is refused: {what}.", code="tool_definition_invalid"
    )


# --- noting it ------------------------------------------------------------------------------


def _is_news(
    listed: _List, listed_at: datetime | None, known: Mapping[str, ToolDefinition]
) -> bool:
    if listed.whole and listed_at is None:
        return True
    if any(_differs(known.get(item.name), item) for item in listed.tools):
        return True
    return bool(listed.missing(known))


def _differs(row: ToolDefinition | None, item: _Listed) -> bool:
    # Without signs: it was listed before texts were looked at.
    return (
        row is None
        or row.listed_digest != item.digest
        or row.gone_at is not None
        or row.signs is None
    )


async def _note_list(
    change: Change, server: Server, listed: _List, known: dict[str, ToolDefinition]
) -> None:
    for item in listed.tools:
        if _differs(row := known.get(item.name), item):
            known[item.name] = await _note(change, server, row, (item, listed.source))
    for row in listed.missing(known):
        row.gone_at = change.now
        change.session.add(row)
        fields = {"tooldef": row.listed_digest, "source": listed.source}
        change.record("tooldef.gone", _subject(server, row.name), fields)
    if listed.whole and server.listed_at is None:
        server.listed_at = change.now
        change.session.add(server)
    await change.session.flush()


async def _note(
    change: Change, server: Server, row: ToolDefinition | None, seen: tuple[_Listed, str]
) -> ToolDefinition:
    item, source = seen
    before = None if row is None else (row.listed_digest, row.gone_at)
    if row is None:
        row = _first(server, item, change.now)
    else:
        row.listed_digest, row.listed = item.digest, item.definition
    if before != (item.digest, None):
        row.listed_at, row.source, row.gone_at = change.now, source, None
        await _end_grants(change, server, item)
        _record_listing(change, server, row, None if before is None else before[0])
    found = strangers.of_tool(item.definition)
    row.signs = [{"code": sign.code, "sentence": sign.sentence} for sign in found]
    change.session.add(row)
    return row


def _first(server: Server, item: _Listed, now: datetime) -> ToolDefinition:
    """A tool that is listed for the first time: pinned only with the first list of its server."""
    trusted = server.pin == "on_first_use" and server.listed_at is None
    return ToolDefinition(
        server_id=server.id,
        name=item.name,
        pinned_digest=item.digest if trusted else NO_PIN,
        pinned=item.definition if trusted else {},
        listed_digest=item.digest,
        listed=item.definition,
        pinned_at=now,
        pinned_by=SYSTEM.ref,
        listed_at=now,
    )


def _record_listing(
    change: Change, server: Server, row: ToolDefinition, before: str | None
) -> None:
    fields: dict[str, Any] = {"tooldef": row.listed_digest, "source": row.source}
    if before is not None:
        fields["before"] = before
    if row.pinned_digest == NO_PIN:
        kind = "tooldef.new"
    elif row.pinned_digest != row.listed_digest:
        kind = "tooldef.changed"
        fields["before"] = row.pinned_digest
        fields["changes"] = _changed_members(row.pinned, row.listed)
    else:
        kind = "tooldef.pinned" if before is None else "tooldef.restored"
    change.record(kind, _subject(server, row.name), fields)


async def _end_grants(change: Change, server: Server, item: _Listed) -> None:
    """What was approved was approved of another definition."""
    of_another: Any = col(Grant.definition_digest).is_distinct_from(item.digest)
    mine = ending.of_tool(server.id, item.name)
    await ending.end_grants(change.tx, mine, of_another, why=ending.DEFINITION, now=change.now)


async def _note_unreliable(
    ledger: Ledger, server_id: str, source: str, why: str, now: datetime
) -> None:
    """A list that cannot be read as a whole vouches for none of the server's tools."""
    async with ledger.transaction() as tx:
        await lock_config(tx.session)
        server = await _server(tx.session, server_id)
        _, known = await _known(tx.session, server_id)
        for row in known.values():
            row.gone_at = row.gone_at or now
            tx.session.add(row)
        fields: dict[str, Any] = {"why": why[:400], "source": source}
        change = Change(tx, SYSTEM, now)
        change.record("tooldef.list_refused", {"server": server.label}, fields)


def _changed_members(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = sorted({*before, *after})
    return [name[:80] for name in names if before.get(name) != after.get(name)][:20]


def _subject(server: Server, tool: str) -> dict[str, str]:
    return {"server": server.label, "tool": tool}


async def _server(session: AsyncSession, server_id: str) -> Server:
    server = await session.get(Server, server_id)
    if server is None:
        raise NotFound("The server is not registered any more.", code="server_unknown")
    return server


async def _known(
    session: AsyncSession, server_id: str
) -> tuple[datetime | None, dict[str, ToolDefinition]]:
    """Since when everything of the server has been listed, and its known tools by name."""
    mine: Any = col(ToolDefinition.server_id) == Server.id
    found = await session.exec(
        select(Server.listed_at, ToolDefinition)
        .join(ToolDefinition, mine, isouter=True)
        .where(col(Server.id) == server_id)
    )
    rows = found.all()
    listed_at = rows[0][0] if rows else None
    return listed_at, {row.name: row for _, row in rows if row is not None}
