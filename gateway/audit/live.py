"""Verifying the ledger where it lives: every record, head and tile of the database.

Reads only, a thousand records at a time, so that memory does not grow with their bodies. Gives
the same kind of report as the verification of an exported folder. Whatever stands in a column of
the ledger, of whatever type, ends in a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, Table, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import tree
from gateway.audit.checkpoint import Checkpoint, VerifierKey
from gateway.audit.sequencer import EPOCH
from gateway.audit.stored import Stored, select_stored, stored
from gateway.audit.tree import TILE_WIDTH
from gateway.audit.verification import Findings, Layer, Report, Scan, name
from gateway.store.database import Database, is_disk_error
from gateway.store.tables import metadata

_CHUNK = 1000
_RECORDS = metadata.tables["audit_records"]
_TILES = metadata.tables["audit_tiles"]
_HEADS = metadata.tables["audit_checkpoints"]
_META = metadata.tables["meta"]
_COLUMNS = ("app", "server", "tool", "exchange", "approval")


async def verify_live(db: Database, key: VerifierKey, *, pins: Sequence[str] = ()) -> Report:
    """Verify the whole ledger up to its newest head, and that older heads in `pins` fit."""
    findings = Findings()
    # Records are sealed meanwhile: everything is read as of one moment.
    options = {} if db.dialect == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    live = _Live(findings, key)
    async with db.reading() as session:
        connection = await session.connection(execution_options=options)
        try:
            await live.verify(connection, pins)
        except DBAPIError as error:
            if error.connection_invalidated or error.orig is None or is_disk_error(error.orig):
                raise
            sentence = f"the tables cannot be read as they are: {error.orig}"
            findings.add(Layer.TREE, "tables altered", sentence)
    head = live.head
    found = sorted(findings.items, key=lambda finding: finding.layer)
    return Report(head.origin, head.size, head.root, [str(key)], found)


class _Live:
    def __init__(self, findings: Findings, key: VerifierKey) -> None:
        self._findings = findings
        self._key = key
        self._scan = Scan(findings)
        self._epoch = 1  # of the head before
        self._elections = 0
        self._compared = 0  # heads
        self._position = 0
        self.head = Checkpoint(key.name, 0, tree.EMPTY_ROOT)

    async def verify(self, connection: AsyncConnection, pins: Sequence[str]) -> None:
        self._connection = connection
        newest = select_stored(_HEADS, connection.dialect.name)
        rows = await self._rows(_HEADS, newest.order_by(_HEADS.c.size.desc()).limit(1))
        if rows:
            self._open_head(rows[0])
        await self._strays()
        if await self._records_and_heads(pins):
            await self._tiles()

    def _open_head(self, row: Stored) -> None:
        size = row["size"] or 0
        head = self._findings.head(row["note"] or "", [self._key], f"the head at {size}")
        if head is None or head.size != size:
            # What it covers is looked at all the same.
            head = Checkpoint(self._key.name, size, row["root"] or b"")
        self.head = head

    async def _records_and_heads(self, pins: Sequence[str]) -> bool:
        pinned = [self._findings.head(pin, [self._key], "a pinned head") for pin in pins]
        older = [head for head in pinned if head is not None]
        sizes = {head.size for head in older}
        kept: dict[int, bytes] = {}
        for start in range(0, self.head.size, _CHUNK):
            heads = await self._heads(start)
            self._scan.wanted = frozenset({*sizes, *(row["size"] for row in heads)})
            if not await self._records(start):
                return False
            for row in heads:
                self._compare_head(row)
            kept |= {size: root for size, root in self._scan.roots.items() if size in sizes}
            self._scan.roots.clear()
        self._scan.roots = kept
        self._scan.finish()
        for head in older:
            self._scan.compare(head, self.head.origin, f"the pinned head of size {head.size}")
        if await self._count(_HEADS) != self._compared:
            self._findings.add(Layer.NOTES, "columns altered", "there are heads without a size")
        return True

    async def _strays(self) -> None:
        """Rows that no head accounts for: an index outside, heads and tiles of no size."""
        index, size = _RECORDS.c.index, self.head.size
        outside = select(func.count()).where(index.is_not(None), (index < 0) | (index >= size))
        if count := await self._connection.scalar(outside):
            sentence = f"{count} records have an index that the head at {size} does not cover"
            self._findings.add(Layer.TREE, "records without head", sentence)
        elections = select(_META.c.value).where(_META.c.name == EPOCH)
        known = str(await self._connection.scalar(elections))
        self._elections = int(known) if known.isascii() and known.isdigit() else 0

    async def _count(self, table: Table) -> int:
        return await self._connection.scalar(select(func.count()).select_from(table)) or 0

    async def _rows(self, table: Table, statement: Select[Any]) -> list[Stored]:
        return stored(table, (await self._connection.execute(statement)).all())

    async def _heads(self, start: int) -> list[Stored]:
        end = min(start + _CHUNK, self.head.size)
        statement = select_stored(_HEADS, self._connection.dialect.name)
        within = (_HEADS.c.size > start, _HEADS.c.size <= end)
        return await self._rows(_HEADS, statement.where(*within).order_by(_HEADS.c.size))

    async def _records(self, start: int) -> bool:
        end = min(start + _CHUNK, self.head.size)
        statement = (
            select_stored(_RECORDS, self._connection.dialect.name)
            .where(_RECORDS.c.index >= start, _RECORDS.c.index < end)
            .order_by(_RECORDS.c.index)
        )
        for expected, row in zip(
            range(start, end), await self._rows(_RECORDS, statement), strict=False
        ):
            if row["index"] != expected:
                break
            self._record(row)
        if self._scan.frontier.size == end:
            return True
        at = self._scan.frontier.size
        self._findings.add(Layer.TREE, "record missing", "it is not in the database", at)
        return False

    def _record(self, row: Stored) -> None:
        body, index = row["body"], row["index"]
        if body is None:
            self._findings.add(Layer.TREE, "record altered", "its body is no bytes", index)
        if not self._scan.feed(body or b"", row["leaf_hash"]):
            sentence = f"its bytes are not those that were hashed ({name(body or b'')})"
            self._findings.add(Layer.TREE, "record hash mismatch", sentence, index)
        elif self._scan.latest is not None:
            self._columns(row, self._scan.latest)

    def _columns(self, row: Stored, document: Mapping[str, Any]) -> None:
        subject = document["subject"]
        told = [document["id"], document["type"], document["actor"]["ref"], document["ts"]]
        told += [subject.get(column) for column in _COLUMNS]
        kept = [row["id"], row["kind"], row["actor"], row["ts"]]
        kept += [row[column] for column in _COLUMNS]
        if kept != told:
            sentence = "the columns beside the record tell something else than its body"
            self._findings.add(Layer.TREE, "columns altered", sentence, row["index"])
        position = row["position"] or 0
        # On PostgreSQL a transaction may commit after one that began later.
        if position <= (self._position if self._connection.dialect.name == "sqlite" else 0):
            sentence = "its position is not after that of the record before"
            self._findings.add(Layer.TREE, "columns altered", sentence, row["index"])
        self._position = position

    def _compare_head(self, row: Stored) -> None:
        self._compared += 1
        source = f"the head at {row['size']}"
        head = self._findings.head(row["note"] or "", [self._key], source)
        if head is None:
            return
        epoch, fits = row["epoch"] or 0, (head.size, head.root) == (row["size"], row["root"])
        in_order = self._epoch <= epoch <= self._elections
        if not (fits and in_order and row["created_at"]):
            self._findings.add(Layer.NOTES, "columns altered", f"{source} is stored wrongly")
        self._epoch = max(self._epoch, epoch)
        if head.size == self.head.size and self._scan.roots.get(head.size) != head.root:
            sentence = f"the records lead to another root than the head signed at {head.size}"
            self._findings.add(Layer.TREE, "tree not authenticated by head", sentence)
        else:
            self._scan.compare(head, self.head.origin, source)

    async def _tiles(self) -> None:
        expected = 0
        for level, number, width in tree.tiles(self.head.size):
            if level == 0:
                continue
            expected += 1
            same = (_TILES.c.level == level) & (_TILES.c.index == number)
            statement = select_stored(_TILES, self._connection.dialect.name).where(same)
            rows = await self._rows(_TILES, statement)
            first = number * TILE_WIDTH
            content = b"".join(self._scan.upper[level][first : first + width])
            if [row["hashes"] for row in rows] != [content]:
                path = tree.tile_path(level, number, width)
                sentence = f"the stored {path} is not that of the records below it"
                start = first * TILE_WIDTH**level
                self._findings.add(Layer.TREE, "tile hash mismatch", sentence, start)
        if await self._count(_TILES) != expected:
            sentence = f"a tree of {self.head.size} records has {expected} stored tiles"
            self._findings.add(Layer.TREE, "unknown tile", sentence)
