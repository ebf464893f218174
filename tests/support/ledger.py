"""Ledgers for tests: one that runs, and a look at whether what was written is sound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy import select

from gateway.audit import checkpoint, tree
from gateway.audit.checkpoint import Checkpoint
from gateway.audit.ledger import Ledger
from gateway.audit.records import SYSTEM, Record, make, parse
from gateway.audit.signing import Signer
from gateway.store.database import Database
from gateway.store.tables import metadata
from gateway.telemetry import Clock

SEED = bytes(range(32))
_RECORDS = metadata.tables["audit_records"]
_HEADS = metadata.tables["audit_checkpoints"]


def signer(origin: str = "gatepass.test") -> Signer:
    """A signer with a fixed key, which remembers nothing on disk."""
    return Signer(origin, SEED)


def make_ledger(db: Database, clock: Clock) -> Ledger:
    """A ledger that looks for work often."""
    return Ledger(db, signer(), clock, poll=0.05)


@contextlib.asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[Ledger]:
    """Run the ledger's tasks for the time of the block, which starts once it seals."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run())
        while not (ledger.elected or ledger.problem or task.done()):
            await asyncio.sleep(0.002)
        try:
            yield ledger
        finally:
            task.cancel()


def a_record(clock: Clock, key: str = "", kind: str = "security.refused") -> Record:
    """A small record; another `key` makes another one."""
    return make(
        kind, now=clock(), actor=SYSTEM, subject={"app": "app_1"}, key=key, fields={"code": "test"}
    )


async def check_ledger(db: Database, verifier: checkpoint.VerifierKey | None = None) -> int:
    """Recompute the whole tree from the bodies; returns its size.

    Every head must be signed and be the root at its size; every record must parse, be indexed
    without a gap and hash to its leaf.
    """
    key = verifier or signer().verifier
    async with db.reading() as session:
        connection = await session.connection()
        query = select(_RECORDS).where(_RECORDS.c.index.is_not(None)).order_by(_RECORDS.c.index)
        rows = (await connection.execute(query)).mappings().all()
        heads = (await connection.execute(select(_HEADS).order_by(_HEADS.c.size))).mappings().all()
    assert [row["index"] for row in rows] == list(range(len(rows)))
    frontier = tree.Frontier()
    roots = {}
    for row in rows:
        record = parse(bytes(row["body"]))
        assert (record.id, record.kind) == (row["id"], row["kind"])
        assert record.leaf_hash == bytes(row["leaf_hash"])
        frontier.append(record.leaf_hash)
        roots[frontier.size] = frontier.root()
    epoch = 0
    for head in heads:
        signed = checkpoint.open_note(head["note"], [key])
        assert signed == Checkpoint(key.name, head["size"], roots[head["size"]])
        assert head["epoch"] >= epoch
        epoch = head["epoch"]
    assert (heads[-1]["size"] if heads else 0) == len(rows)
    return len(rows)
