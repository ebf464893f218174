"""Verifying the ledger where it lives: every record, head and tile of the database.

Reads only, a thousand records at a time, so that memory does not grow with their bodies. Gives
the same kind of report as the verification of an exported folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import tree
from gateway.audit.checkpoint import Checkpoint, VerifierKey
from gateway.audit.tree import HASH_SIZE, TILE_WIDTH
from gateway.audit.verification import Findings, Layer, Report, Scan, name
from gateway.store.database import Database
from gateway.store.tables import metadata

_CHUNK = 1000
_RECORDS = metadata.tables["audit_records"]
_TILES = metadata.tables["audit_tiles"]
_HEADS = metadata.tables["audit_checkpoints"]
_COLUMNS = ("app", "server", "tool", "exchange", "approval")


async def verify_live(db: Database, key: VerifierKey, *, pins: Sequence[str] = ()) -> Report:
    """Verify the whole ledger up to its newest head, and that older heads in `pins` fit."""
    findings = Findings()
    async with db.reading() as session:
        connection = await session.connection()
        statement = select(_HEADS).order_by(_HEADS.c.size.desc()).limit(1)
        row = (await connection.execute(statement)).mappings().first()
        if row is None:
            return Report(key.name, 0, tree.EMPTY_ROOT, [str(key)], [])
        head = findings.head(row["note"], [key], f"the head at {row['size']}")
        head = head or Checkpoint(key.name, row["size"], bytes(row["root"]))
        await _Live(connection, findings, key, head).verify(pins)
    found = sorted(findings.items, key=lambda finding: finding.layer)
    return Report(head.origin, head.size, head.root, [str(key)], found)


class _Live:
    def __init__(
        self, connection: AsyncConnection, findings: Findings, key: VerifierKey, head: Checkpoint
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._key = key
        self._head = head
        self._scan = Scan(findings)

    async def verify(self, pins: Sequence[str]) -> None:
        pinned = [self._findings.head(pin, [self._key], "a pinned head") for pin in pins]
        older = [head for head in pinned if head is not None]
        sizes = {head.size for head in older}
        kept: dict[int, bytes] = {}
        for start in range(0, self._head.size, _CHUNK):
            heads = await self._heads(start)
            self._scan.wanted = frozenset({*sizes, *(row["size"] for row in heads)})
            if not await self._records(start):
                return
            for row in heads:
                self._compare_head(row)
            kept |= {size: root for size, root in self._scan.roots.items() if size in sizes}
            self._scan.roots.clear()
        self._scan.roots = kept
        self._scan.finish()
        for head in older:
            self._scan.compare(head, self._head.origin, f"the pinned head of size {head.size}")
        await self._tiles()

    async def _heads(self, start: int) -> Sequence[RowMapping]:
        end = min(start + _CHUNK, self._head.size)
        statement = select(_HEADS).where(_HEADS.c.size > start, _HEADS.c.size <= end)
        return (await self._connection.execute(statement)).mappings().all()

    async def _records(self, start: int) -> bool:
        end = min(start + _CHUNK, self._head.size)
        statement = (
            select(_RECORDS)
            .where(_RECORDS.c.index >= start, _RECORDS.c.index < end)
            .order_by(_RECORDS.c.index)
        )
        rows = (await self._connection.execute(statement)).mappings()
        for expected, row in zip(range(start, end), rows, strict=False):
            if row["index"] != expected:
                break
            self._record(row)
        if self._scan.frontier.size == end:
            return True
        at = self._scan.frontier.size
        self._findings.add(Layer.TREE, "record missing", "it is not in the database", at)
        return False

    def _record(self, row: RowMapping) -> None:
        body, index = bytes(row["body"]), row["index"]
        leaf = self._scan.feed(body, readable=tree.leaf_hash(body) == bytes(row["leaf_hash"]))
        if leaf != bytes(row["leaf_hash"]):
            sentence = f"its bytes are not those that were hashed ({name(body)})"
            self._findings.add(Layer.TREE, "record hash mismatch", sentence, index)
        elif self._scan.latest is not None:
            self._columns(row, self._scan.latest)

    def _columns(self, row: RowMapping, document: Mapping[str, Any]) -> None:
        subject = document["subject"]
        told = [document["id"], document["type"], document["actor"]["ref"]]
        told += [subject.get(column) for column in _COLUMNS]
        kept = [row["id"], row["kind"], row["actor"], *(row[column] for column in _COLUMNS)]
        if kept != told:
            sentence = "the columns beside the record tell something else than its body"
            self._findings.add(Layer.TREE, "columns altered", sentence, row["index"])

    def _compare_head(self, row: RowMapping) -> None:
        source = f"the head at {row['size']}"
        head = self._findings.head(row["note"], [self._key], source)
        if head is None:
            return
        if (head.size, head.root) != (row["size"], bytes(row["root"])):
            self._findings.add(Layer.NOTES, "columns altered", f"{source} is stored wrongly")
        if head.size == self._head.size and self._scan.roots.get(head.size) != head.root:
            sentence = f"the records lead to another root than the head signed at {head.size}"
            self._findings.add(Layer.TREE, "tree not authenticated by head", sentence)
        else:
            self._scan.compare(head, self._head.origin, source)

    async def _tiles(self) -> None:
        for level, number, width in tree.tiles(self._head.size):
            if level == 0:
                continue
            same = (_TILES.c.level == level) & (_TILES.c.index == number)
            content = await self._connection.scalar(select(_TILES.c.hashes).where(same)) or b""
            first = number * TILE_WIDTH
            expected = b"".join(self._scan.upper[level][first : first + width])
            if bytes(content[: width * HASH_SIZE]) != expected:
                path = tree.tile_path(level, number, width)
                sentence = f"the stored {path} is not that of the records below it"
                start = first * TILE_WIDTH**level
                self._findings.add(Layer.TREE, "tile hash mismatch", sentence, start)
