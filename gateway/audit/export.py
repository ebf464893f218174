"""Writing an evidence folder: everything that a stranger needs to check the ledger offline.

Records the export before it is made. What is written is consistent at one signed head, however
much is appended meanwhile. Files are for their owner alone (0600, folders 0700).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import reading, tree
from gateway.audit.checkpoint import Proof
from gateway.audit.folder import describe, manifest
from gateway.audit.ledger import Ledger
from gateway.audit.reading import Head
from gateway.audit.records import Actor, make, timestamp
from gateway.audit.tree import HASH_SIZE, TILE_WIDTH, Frontier, Node
from gateway.errors import Refused
from gateway.store.database import Database
from gateway.store.tables import metadata

MOST_HEADS = 512
_CHUNK = 8 * TILE_WIDTH
_RECORDS = metadata.tables["audit_records"]
_HEADS = metadata.tables["audit_checkpoints"]


@dataclass(frozen=True, slots=True)
class Opening:
    """An opened payload: the exact bytes put before reviewers, and the blind of the commitment."""

    arguments: bytes
    blind: bytes


OpenPayload = Callable[[str], Awaitable[Opening | None]]


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    path: Path
    size: int
    root: bytes
    files: int
    payloads: int


async def export(
    ledger: Ledger,
    destination: Path,
    *,
    actor: Actor,
    now: datetime,
    open_payload: OpenPayload | None = None,
) -> Exported:
    """Write the whole ledger up to its newest head into the new folder `destination`.

    Payloads of approval requests are opened when `open_payload` is given; it answers None for
    what is gone. Raises `Refused` when the folder exists and is not empty, `Unavailable` when the
    export cannot be recorded.
    """
    await asyncio.to_thread(_prepare, destination)
    await _announce(ledger, actor, now, payloads=open_payload is not None)
    head = await reading.latest(ledger.db)
    if head is None:
        raise Refused("There is no signed head to export yet.", code="ledger_empty")
    writing = _Export(ledger, destination, head)
    return await writing.write(open_payload)


async def _announce(ledger: Ledger, actor: Actor, now: datetime, *, payloads: bool) -> None:
    head = await reading.latest(ledger.db)
    size = 0 if head is None else head.size
    async with ledger.transaction() as tx:
        key = f"{actor.ref}:{timestamp(now)}:{size}"
        fields = {"size": size, "payloads": payloads}
        tx.record(make("export.made", now=now, actor=actor, subject={}, key=key, fields=fields))
    await tx.sealed()


@dataclass
class _Found:
    """What the pass over the records found worth a file of its own."""

    decided: list[int] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)


class _Export:
    def __init__(self, ledger: Ledger, path: Path, head: Head) -> None:
        self._db: Database = ledger.db
        self._verifier = ledger.signer.verifier
        self._path = path
        self._head = head
        self._frontier = Frontier()
        self._levels: dict[int, bytearray] = {0: bytearray()}
        self._listed: dict[str, dict[str, Any]] = {}

    async def write(self, open_payload: OpenPayload | None) -> Exported:
        async with self._db.reading() as session:
            connection = await session.connection()
            found = await self._records(connection)
            heads = await self._heads(connection)
        await self._put(self._tiles())
        await self._put({"checkpoint": self._head.note.encode()} | heads)
        await self._put(self._proofs(found.decided))
        await self._put(self._texts())
        payloads = await self._payloads(found.requested, open_payload)
        head = self._head
        content = manifest(self._verifier.name, head.size, head.root, self._listed)
        await self._put({"manifest.json": content})
        return Exported(self._path, head.size, head.root, len(self._listed), payloads)

    async def _records(self, connection: AsyncConnection) -> _Found:
        found = _Found()
        columns = (_RECORDS.c.kind, _RECORDS.c.approval, _RECORDS.c.body, _RECORDS.c.leaf_hash)
        for start in range(0, self._head.size, _CHUNK):
            end = min(start + _CHUNK, self._head.size)
            statement = (
                select(*columns)
                .where(_RECORDS.c.index >= start, _RECORDS.c.index < end)
                .order_by(_RECORDS.c.index)
            )
            rows = (await connection.execute(statement)).all()
            for index, row in enumerate(rows, start):
                self._append(bytes(row.leaf_hash))
                match row.kind:
                    case "approval.decided":
                        found.decided.append(index)
                    case "approval.requested" if row.approval:
                        found.requested.append(row.approval)
            bodies = [bytes(row.body) for row in rows]
            await self._put(_bundles(bodies, start))
        return found

    def _append(self, leaf: bytes) -> None:
        self._levels[0] += leaf
        for (height, _), value in self._frontier.append(leaf):
            self._levels.setdefault(height // tree.TILE_HEIGHT, bytearray()).extend(value)

    async def _heads(self, connection: AsyncConnection) -> dict[str, bytes]:
        within = _HEADS.c.size <= self._head.size
        sizes = list(
            (
                await connection.execute(
                    select(_HEADS.c.size).where(within).order_by(_HEADS.c.size)
                )
            ).scalars()
        )
        chosen = _spread(sizes)
        statement = select(_HEADS.c.size, _HEADS.c.note).where(_HEADS.c.size.in_(chosen))
        rows = (await connection.execute(statement)).all()
        return {f"checkpoints/{row.size}.note": row.note.encode() for row in rows}

    def _tiles(self) -> dict[str, bytes]:
        tiles = {}
        for level, number, width in tree.tiles(self._head.size):
            start = number * TILE_WIDTH * HASH_SIZE
            content = bytes(self._levels[level][start : start + width * HASH_SIZE])
            tiles[tree.tile_path(level, number, width)] = content
        return tiles

    def _proofs(self, indexes: Sequence[int]) -> dict[str, bytes]:
        proofs = {}
        for index in indexes:
            plan = tree.plan_inclusion(index, self._head.size)
            proof = Proof(index, tree.prove(plan, self._look_up), self._head.note)
            proofs[f"proofs/{index}.tlog-proof"] = proof.text().encode()
        return proofs

    def _look_up(self, node: Node) -> bytes:
        level, tile, first, count = tree.tile_of(node)
        start = (tile * TILE_WIDTH + first) * HASH_SIZE
        part = self._levels[level][start : start + count * HASH_SIZE]
        return tree.join([bytes(part[at : at + HASH_SIZE]) for at in range(0, len(part), 32)])

    def _texts(self) -> dict[str, bytes]:
        package = resources("gateway.audit")
        return {
            f"keys/{self._verifier.id.hex()}.vkey": f"{self._verifier}\n".encode(),
            "VERIFY.md": (package / "VERIFY.md").read_bytes(),
            "verify_evidence.py": (package / "verify_evidence.py").read_bytes(),
        }

    async def _payloads(self, approvals: Sequence[str], opener: OpenPayload | None) -> int:
        if opener is None:
            return 0
        count = 0
        for approval in approvals:
            opening = await opener(approval)
            if opening is not None:
                document = {
                    "approval": approval,
                    "arguments": opening.arguments.decode(),
                    "blind": opening.blind.hex(),
                }
                content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
                await self._put({f"payloads/{approval}.json": content})
                count += 1
        return count

    async def _put(self, contents: Mapping[str, bytes]) -> None:
        for path, content in contents.items():
            if path != "manifest.json":
                self._listed[path] = describe(content)
        await asyncio.to_thread(_write, self._path, contents)


def _bundles(bodies: Sequence[bytes], start: int) -> dict[str, bytes]:
    bundles = {}
    for at in range(0, len(bodies), TILE_WIDTH):
        part = bodies[at : at + TILE_WIDTH]
        path = tree.entries_path((start + at) // TILE_WIDTH, len(part))
        bundles[path] = tree.pack(part)
    return bundles


def _spread(sizes: Sequence[int]) -> list[int]:
    """At most `MOST_HEADS` of the sizes, evenly spread, with the last."""
    if len(sizes) <= MOST_HEADS:
        return list(sizes)
    step = len(sizes) / MOST_HEADS
    return [sizes[min(int((at + 1) * step) - 1, len(sizes) - 1)] for at in range(MOST_HEADS)]


def _prepare(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise Refused(f"{path} is not empty: an export needs a folder of its own.")
    path.chmod(0o700)


def _write(root: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        path = root / name
        folder = path.parent
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
