"""Looking at the ledger: records, filters, heads, proofs, and verifying one record.

Reads only. What stands in a body is what counts; the columns beside it only help to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Row, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import tree
from gateway.audit.checkpoint import Damaged, Proof, VerifierKey, open_note
from gateway.audit.kinds import say
from gateway.audit.records import Malformed, Unsupported, parse
from gateway.audit.tree import HASH_SIZE, TILE_WIDTH, Lookup, Node
from gateway.audit.verification import verify_record as verify_under
from gateway.errors import NotFound, Refused, Unavailable
from gateway.store.database import Database
from gateway.store.tables import metadata

MOST_COUNTED = 10_000
_RECORDS = metadata.tables["audit_records"]
_TILES = metadata.tables["audit_tiles"]
_HEADS = metadata.tables["audit_checkpoints"]
Tiles: TypeAlias = dict[tuple[int, int], bytes]  # by level and index
_FILTERS = ("kind", "actor", "app", "server", "tool", "exchange", "approval")


@dataclass(frozen=True)
class Entry:
    """One record as it is shown. `index` and `receipt` are None while it is not yet sealed."""

    index: int | None
    id: str
    kind: str
    ts: datetime
    body: bytes
    document: dict[str, Any]
    leaf_hash: bytes
    sentence: str


@dataclass(frozen=True)
class Query:
    """Filters of the audit browser; `after` is the `next` of the page before."""

    kind: str | None = None
    actor: str | None = None
    app: str | None = None
    server: str | None = None
    tool: str | None = None
    exchange: str | None = None
    approval: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True)
class Entries:
    """A page, newest first."""

    items: list[Entry]
    next: str | None


@dataclass(frozen=True)
class Facets:
    """How many records of each kind match; `bounded` when only the newest were counted."""

    kinds: dict[str, int]
    bounded: bool


@dataclass(frozen=True)
class Head:
    """A signed head."""

    size: int
    root: bytes
    epoch: int
    note: str
    created_at: datetime


@dataclass(frozen=True)
class Verdict:
    """`state`: verified, not_yet_sealed, cannot_verify or failed; `reason` in one sentence."""

    state: str
    reason: str
    index: int | None = None
    size: int | None = None
    proof: Proof | None = field(default=None, repr=False)


async def record(db: Database, name: int | str) -> Entry:
    """The record of an index or an id; `NotFound`."""
    same = _RECORDS.c.index == name if isinstance(name, int) else _RECORDS.c.id == name
    async with db.reading() as session:
        connection = await session.connection()
        row = (await connection.execute(select(_RECORDS).where(same))).first()
    if row is None:
        raise NotFound("The ledger has no such record.", code="record_not_found")
    return _entry(row)


async def search(db: Database, query: Query) -> Entries:
    """Matching records, newest first, at most 200 a page."""
    limit = max(1, min(query.limit, 200))
    statement = _filtered(select(_RECORDS), query).order_by(_RECORDS.c.position.desc())
    if query.after is not None:
        if not (query.after.isascii() and query.after.isdigit() and len(query.after) < 19):
            raise Refused("The page mark is not one that was handed out.", param="after")
        statement = statement.where(_RECORDS.c.position < int(query.after))
    async with db.reading() as session:
        connection = await session.connection()
        rows = (await connection.execute(statement.limit(limit + 1))).all()
    more = str(rows[limit - 1].position) if len(rows) > limit else None
    return Entries([_entry(row) for row in rows[:limit]], more)


async def facets(db: Database, query: Query) -> Facets:
    """How many of the newest ten thousand matching records are of each kind."""
    newest = (
        _filtered(select(_RECORDS.c.kind), query)
        .order_by(_RECORDS.c.position.desc())
        .limit(MOST_COUNTED)
        .subquery()
    )
    counted = func.count().label("number")
    statement = select(newest.c.kind, counted).group_by(newest.c.kind).order_by(counted.desc())
    async with db.reading() as session:
        rows = (await (await session.connection()).execute(statement)).all()
    kinds = {str(kind): int(number) for kind, number in rows}
    return Facets(kinds, sum(kinds.values()) >= MOST_COUNTED)


async def latest(db: Database) -> Head | None:
    """The newest signed head, or None in an empty ledger."""
    async with db.reading() as session:
        return await _latest(await session.connection())


async def head_at(db: Database, size: int) -> Head:
    """The head that was signed at `size`; `NotFound`."""
    async with db.reading() as session:
        connection = await session.connection()
        row = (await connection.execute(select(_HEADS).where(_HEADS.c.size == size))).first()
    if row is None:
        raise NotFound(f"No head was signed at size {size}.", code="head_not_found")
    return _head(row)


async def proof(db: Database, index: int) -> Proof:
    """The receipt of a record against the newest head; `NotFound` while it is not sealed."""
    async with db.reading() as session:
        connection = await session.connection()
        head = await _latest(connection)
        if head is None or not 0 <= index < head.size:
            raise NotFound("No signed head covers such a record yet.", code="proof_not_found")
        return await _prove(connection, index, head)


async def consistency(db: Database, first: int, second: int) -> list[bytes]:
    """The proof that the ledger at size `second` only adds to that at size `first`."""
    async with db.reading() as session:
        connection = await session.connection()
        head = await _latest(connection)
        if head is None or not 0 < first <= second <= head.size:
            raise NotFound("No signed head covers these sizes.", code="proof_not_found")
        plan = tree.plan_consistency(first, second)
        return tree.prove(plan, await _hashes(connection, plan))


async def verify_record(db: Database, key: VerifierKey, index: int) -> Verdict:
    """Recompute one record from its body up to the signed head."""
    try:
        entry = await record(db, index)
    except NotFound:
        return await _absent(db, index)
    try:
        receipt = await proof(db, index)
    except NotFound:
        return Verdict("not_yet_sealed", "No signed head covers this record yet.", index)
    except (Unavailable, Damaged) as error:
        return Verdict("failed", f"Its proof cannot be computed: {error}", index)
    return _judge(entry, receipt, key)


async def verify_entries(db: Database, key: VerifierKey, entries: Sequence[Entry]) -> list[Verdict]:
    """A verdict on each of these, as `verify_record` gives it, with every tile read once."""
    async with db.reading() as session:
        connection = await session.connection()
        head = await _latest(connection)
        tiles: Tiles = {}
        return [await _verify(connection, key, entry, head, tiles) for entry in entries]


async def _verify(
    connection: AsyncConnection, key: VerifierKey, entry: Entry, head: Head | None, tiles: Tiles
) -> Verdict:
    if head is None or entry.index is None or entry.index >= head.size:
        return Verdict("not_yet_sealed", "No signed head covers this record yet.", entry.index)
    try:
        receipt = await _prove(connection, entry.index, head, tiles)
    except (Unavailable, Damaged) as error:
        return Verdict("failed", f"Its proof cannot be computed: {error}", entry.index)
    return _judge(entry, receipt, key)


def _judge(entry: Entry, receipt: Proof, key: VerifierKey) -> Verdict:
    index = receipt.index
    finding = verify_under(entry.body, index, receipt, key)
    if finding is not None:
        state = "cannot_verify" if finding.damage == "unknown key" else "failed"
        return Verdict(state, str(finding), index)
    try:
        known = parse(entry.body)
    except Unsupported as error:
        return Verdict("cannot_verify", f"This version does not know it: {error}.", index)
    except Malformed as error:
        return Verdict("failed", f"It is not a record: {error}.", index)
    if (known.id, known.kind) != (entry.id, entry.kind):
        return Verdict("failed", "The columns beside the record tell something else.", index)
    head = open_note(receipt.note, [key])
    reason = f"A head signed at {head.size} records contains exactly these bytes."
    return Verdict("verified", reason, index, head.size, receipt)


async def _absent(db: Database, index: int) -> Verdict:
    head = await latest(db)
    if head is not None and 0 <= index < head.size:
        return Verdict("failed", "A signed head covers this record, but it is missing.", index)
    return Verdict("not_yet_sealed", "The ledger does not reach this index yet.", index)


def _filtered(statement: Select[Any], query: Query) -> Select[Any]:
    for name in _FILTERS:
        value = getattr(query, name)
        if value is not None:
            column = _RECORDS.c[name]
            match = column.startswith(value[:-1], autoescape=True) if value.endswith(".*") else None
            statement = statement.where(column == value if match is None else match)
    if query.since is not None:
        statement = statement.where(_RECORDS.c.ts >= query.since)
    if query.until is not None:
        statement = statement.where(_RECORDS.c.ts < query.until)
    return statement


def _entry(row: Row[Any]) -> Entry:
    members = row._mapping
    body = bytes(members["body"])
    try:
        document = parse(body).document()
    except (Malformed, Unsupported):
        document = {}
    return Entry(
        members["index"],
        members["id"],
        members["kind"],
        members["ts"],
        body,
        document,
        bytes(members["leaf_hash"]),
        say(document) if document else "This record cannot be read.",
    )


def _head(row: Row[Any]) -> Head:
    return Head(row.size, bytes(row.root), row.epoch, row.note, row.created_at)


async def _latest(connection: AsyncConnection) -> Head | None:
    statement = select(_HEADS).order_by(_HEADS.c.size.desc()).limit(1)
    row = (await connection.execute(statement)).first()
    return None if row is None else _head(row)


async def _prove(
    connection: AsyncConnection, index: int, head: Head, tiles: Tiles | None = None
) -> Proof:
    plan = tree.plan_inclusion(index, head.size)
    return Proof(index, tree.prove(plan, await _hashes(connection, plan, tiles)), head.note)


async def _hashes(
    connection: AsyncConnection, plan: Sequence[Sequence[Node]], known: Tiles | None = None
) -> Lookup:
    """Fetch the tiles that a plan needs, two or three of each level; `known` keeps them."""
    tiles: Tiles = {} if known is None else known
    for node in (node for nodes in plan for node in nodes):
        level, index, _, _ = tree.tile_of(node)
        if (level, index) not in tiles:
            tiles[level, index] = await _tile(connection, level, index)

    def look_up(node: Node) -> bytes:
        level, index, first, count = tree.tile_of(node)
        part = tiles[level, index][first * HASH_SIZE : (first + count) * HASH_SIZE]
        if len(part) != count * HASH_SIZE:
            raise Unavailable("Hashes of the ledger are missing.", code="ledger_broken")
        return tree.join([part[at : at + HASH_SIZE] for at in range(0, len(part), HASH_SIZE)])

    return look_up


async def _tile(connection: AsyncConnection, level: int, index: int) -> bytes:
    if level:
        same = (_TILES.c.level == level) & (_TILES.c.index == index)
        return bytes(await connection.scalar(select(_TILES.c.hashes).where(same)) or b"")
    start = index * TILE_WIDTH
    statement = (
        select(_RECORDS.c.leaf_hash)
        .where(_RECORDS.c.index >= start, _RECORDS.c.index < start + TILE_WIDTH)
        .order_by(_RECORDS.c.index)
    )
    return b"".join((await connection.execute(statement)).scalars())
