"""The newest signed head of a database, and whether it can follow what this process knows of.

Every replica remembers the newest head that it has seen. A database whose last head is smaller, or
that has another root at that size, is not the one that was signed: an older copy was put back,
a lagging standby took over, or somebody has rewritten it. An older memory refuses nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import checkpoint
from gateway.audit.checkpoint import Checkpoint
from gateway.audit.signing import Signer
from gateway.errors import Unavailable
from gateway.store.tables import metadata

#: The code of what is not to be trusted any more, until a person has looked.
BROKEN = "ledger_broken"
_HEADS = metadata.tables["audit_checkpoints"]
_LAST = select(_HEADS).order_by(_HEADS.c.size.desc()).limit(1)


def broken(why: str) -> Unavailable:
    """What is raised instead of signing; `why` is a sentence about the ledger."""
    return Unavailable(
        f"The ledger is not signed any further. {why} Run 'gatepass audit verify'.", code=BROKEN
    )


async def newest(connection: AsyncConnection) -> Row[Any] | None:
    """The row of the last head, unchecked."""
    return (await connection.execute(_LAST)).first()


def check_signed(head: Row[Any], signer: Signer) -> Checkpoint:
    """What the head says, if our key has signed it for its row."""
    try:
        signed = checkpoint.open_note(head.note, [signer.verifier])
    except checkpoint.Damaged as error:
        raise broken(f"Its last head is not signed by the present key: {error}") from error
    if (signed.size, signed.root) != (head.size, bytes(head.root)):
        raise broken(f"Its hashes do not lead to the head that was signed at size {head.size}.")
    return signed


async def check_remembered(connection: AsyncConnection, signer: Signer, size: int) -> None:
    """Compare a database whose last head is of `size` with the last head remembered here."""
    last = signer.last()
    if last is None:
        return
    if last.size > size:
        raise broken(
            f"It ends at {size} records, but a head of {last.size} was signed: an older copy "
            "of the database was put back."
        )
    query = select(_HEADS.c.root).where(_HEADS.c.size == last.size)
    if await connection.scalar(query) != last.root:
        raise broken(f"It tells another story than the head signed at size {last.size}.")
