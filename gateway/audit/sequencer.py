"""Gives every committed record its place in the tree and signs the head.

Owns the indexes of records, the tiles and the signed heads. Never writes a record's body. One
process is elected (see `seat`); each election raises a stored epoch, and a sealing transaction
of an older epoch is refused, so that a paused process cannot fork the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import checkpoint, tree
from gateway.audit.inserts import Inserts
from gateway.audit.records import SYSTEM, JSONValue, Record, make
from gateway.audit.seat import Seat
from gateway.audit.signing import Signer
from gateway.audit.tree import HASH_SIZE, TILE_WIDTH, Frontier
from gateway.errors import Unavailable
from gateway.store.database import Database
from gateway.store.tables import metadata
from gateway.telemetry import Clock, log

EPOCH = "ledger_epoch"
_BATCH = 512
_RECORDS = metadata.tables["audit_records"]
_TILES = metadata.tables["audit_tiles"]
_HEADS = metadata.tables["audit_checkpoints"]
_META = metadata.tables["meta"]
_WAITING = (
    select(_RECORDS.c.position, _RECORDS.c.id, _RECORDS.c.leaf_hash)
    .where(_RECORDS.c.index.is_(None))
    .order_by(_RECORDS.c.position)
    .limit(_BATCH)
)
_PLACE = (
    update(_RECORDS)
    .where(_RECORDS.c.position.between(bindparam("first"), bindparam("last")))
    .values({"index": _RECORDS.c.position + bindparam("shift")})
)
_ADD_HEAD = insert(_HEADS)
_ELECTED = select(_META.c.value).where(_META.c.name == EPOCH).with_for_update(read=True)
_LAST_HEAD = select(_HEADS).order_by(_HEADS.c.size.desc()).limit(1)


class Stale(Unavailable):
    """Another process was elected since: this one must not sign any more."""

    default_code = "ledger_stale"


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one sealing did: the index of each record by id, and the size of the new head.

    `more` says that the batch was full, so that others may wait.
    """

    size: int
    places: dict[str, int]
    more: bool


@dataclass
class Growth:
    """The tree as it stands in memory: its right edge and the unfinished tiles above leaves."""

    frontier: Frontier = field(default_factory=Frontier)
    edges: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Growth:
        """An independent copy, to be thrown away when the transaction fails."""
        return Growth(self.frontier.copy(), dict(self.edges))

    def append(self, leaf: bytes) -> dict[tuple[int, int], bytes]:
        """Add a leaf hash; returns the tiles, by level and index, that changed."""
        changed = {}
        for (height, index), value in self.frontier.append(leaf):
            level = height // tree.TILE_HEIGHT
            content = self.edges.get(level, b"") + value
            changed[level, index // TILE_WIDTH] = content
            self.edges[level] = b"" if len(content) == TILE_WIDTH * HASH_SIZE else content
        return changed


class Sequencer:
    """Elect, then seal as often as there is something to seal."""

    def __init__(self, database: Database, signer: Signer, clock: Clock, seat: Seat) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock
        self._seat = seat
        self._inserts = Inserts(database.engine.dialect)
        self._growth: Growth | None = None
        self.epoch = 0

    @property
    def elected(self) -> bool:
        """Whether this process gives records their place now."""
        return self._growth is not None

    async def elect(self, *, announce: bool) -> bool:
        """Take the seat, raise the epoch, recover the tree; false when another has the seat.

        Raises `Unavailable` when the stored ledger is not what was signed: nothing will be
        signed then. `announce` writes `ledger.started`.
        """
        if not await self._seat.take():
            return False
        try:
            async with self._database.connection() as connection:
                growth = await self._recover(connection)
                epoch = await _raise_epoch(connection)
                if announce:
                    record = self._started(epoch, growth.frontier.size)
                    await self._inserts.records(connection, [record])
        except BaseException:
            await self._seat.leave()
            raise
        self._growth, self.epoch = growth, epoch
        return True

    async def resign(self) -> None:
        """Give up the seat."""
        self._growth = None
        await self.keep()
        await self._seat.leave()

    async def keep(self) -> None:
        """Keep the last signed head beside the database. It is worth a warning, not an outage."""
        try:
            await asyncio.to_thread(self._signer.save)
        except OSError as error:
            log.error("signed_head_not_kept", problem=str(error))

    async def seal(self) -> Sealed | None:
        """One transaction: places, tiles and the signed head. None when nothing waited.

        Durable when it returns. Raises `Stale` when another process was elected.
        """
        if self._growth is None:
            raise Stale("This process does not sequence the ledger.")
        growth = self._growth.copy()
        async with self._database.connection() as connection:
            await self._check_epoch(connection)
            rows = (await connection.execute(_WAITING)).all()
            if not rows:
                return None
            first = growth.frontier.size
            changed: dict[tuple[int, int], bytes] = {}
            for row in rows:
                changed |= growth.append(row.leaf_hash)
            await connection.execute(_PLACE, _runs([row.position for row in rows], first))
            await _write_tiles(connection, changed)
            note = await self._write_head(connection, growth.frontier)
        self._growth = growth
        self._signer.remember(note)
        size = growth.frontier.size
        indexes = {row.id: first + n for n, row in enumerate(rows)}
        return Sealed(size, indexes, more=len(rows) == _BATCH)

    async def _write_head(self, connection: AsyncConnection, frontier: Frontier) -> str:
        root = frontier.root()
        note = self._signer.sign(frontier.size, root)
        row = {
            "size": frontier.size,
            "epoch": self.epoch,
            "root": root,
            "note": note,
            "created_at": self._clock(),
        }
        await connection.execute(_ADD_HEAD, row)
        return note

    async def _check_epoch(self, connection: AsyncConnection) -> None:
        # FOR SHARE keeps the next election out until this transaction has ended.
        stored = await connection.scalar(_ELECTED)
        if stored != str(self.epoch):
            raise Stale(f"The ledger is sequenced by election {stored}, this is {self.epoch}.")

    async def _recover(self, connection: AsyncConnection) -> Growth:
        head = (await connection.execute(_LAST_HEAD)).first()
        size = 0 if head is None else head.size
        growth = await _rebuild(connection, size)
        placed = await connection.scalar(select(func.max(_RECORDS.c.index)))
        if (-1 if placed is None else placed) != size - 1:
            raise _refuse("Its last record is not the one that its last head was signed for.")
        if head is not None:
            self._check_head(head.note, size, growth.frontier.root())
        await self._check_memory(connection, size)
        return growth

    def _check_head(self, note: str, size: int, root: bytes) -> None:
        try:
            signed = checkpoint.open_note(note, [self._signer.verifier])
        except checkpoint.Damaged as error:
            raise _refuse(f"Its last head is not signed by the present key: {error}") from error
        if (signed.size, signed.root) != (size, root):
            raise _refuse(f"Its hashes do not lead to the head that was signed at size {size}.")

    async def _check_memory(self, connection: AsyncConnection, size: int) -> None:
        last = self._signer.last()
        if last is None:
            return
        if last.size > size:
            raise _refuse(
                f"It ends at {size} records, but a head of {last.size} was signed: an older copy "
                "of the database was put back."
            )
        query = select(_HEADS.c.root).where(_HEADS.c.size == last.size)
        if await connection.scalar(query) != last.root:
            raise _refuse(f"It tells another story than the head signed at size {last.size}.")

    def _started(self, epoch: int, size: int) -> Record:
        vkey = str(self._signer.verifier)
        fields: dict[str, JSONValue] = {"epoch": epoch, "size": size, "vkey": vkey}
        now = self._clock()
        return make(
            "ledger.started", now=now, actor=SYSTEM, subject={}, key=str(epoch), fields=fields
        )


def _runs(positions: Sequence[int], index: int) -> list[dict[str, int]]:
    """Runs of neighbouring positions, and how far their indexes are from them."""
    runs: list[dict[str, int]] = []
    for place, position in enumerate(positions, index):
        if runs and runs[-1]["last"] == position - 1:
            runs[-1]["last"] = position
        else:
            runs.append({"first": position, "last": position, "shift": place - position})
    return runs


def _refuse(why: str) -> Unavailable:
    return Unavailable(
        f"The ledger is not signed any further. {why} Run 'gatepass audit verify'.",
        code="ledger_broken",
    )


async def _raise_epoch(connection: AsyncConnection) -> int:
    query = select(_META.c.value).where(_META.c.name == EPOCH).with_for_update()
    stored = await connection.scalar(query)
    if stored is None:
        await connection.execute(insert(_META), {"name": EPOCH, "value": "1"})
        return 1
    epoch = int(stored) + 1
    await connection.execute(update(_META).where(_META.c.name == EPOCH).values(value=str(epoch)))
    return epoch


async def _write_tiles(connection: AsyncConnection, changed: dict[tuple[int, int], bytes]) -> None:
    for (level, index), hashes in changed.items():
        same = (_TILES.c.level == level) & (_TILES.c.index == index)
        done = await connection.execute(update(_TILES).where(same).values(hashes=hashes))
        if done.rowcount == 0:
            row = {"level": level, "index": index, "hashes": hashes}
            await connection.execute(insert(_TILES), row)


async def _rebuild(connection: AsyncConnection, size: int) -> Growth:
    """The right edge of the tree from stored hashes: at most 255 of each level."""
    growth = Growth(Frontier(size))
    level, count = 0, size
    peaks: list[list[bytes]] = []
    while count:
        full, width = divmod(count, TILE_WIDTH)
        hashes = await _edge(connection, level, full, width)
        peaks.append(
            [
                tree.join(hashes[at << height : (at + 1) << height])
                for height, at in tree.cover(0, width)
            ]
        )
        if level:
            growth.edges[level] = b"".join(hashes)
        level, count = level + 1, full
    growth.frontier.peaks = [peak for row in reversed(peaks) for peak in row]
    return growth


async def _edge(connection: AsyncConnection, level: int, index: int, width: int) -> list[bytes]:
    if width == 0:
        return []
    if level == 0:
        start = index * TILE_WIDTH
        query = (
            select(_RECORDS.c.leaf_hash)
            .where(_RECORDS.c.index >= start, _RECORDS.c.index < start + width)
            .order_by(_RECORDS.c.index)
        )
        hashes = list((await connection.execute(query)).scalars())
    else:
        same = (_TILES.c.level == level) & (_TILES.c.index == index)
        content = await connection.scalar(select(_TILES.c.hashes).where(same)) or b""
        hashes = [content[at : at + HASH_SIZE] for at in range(0, len(content), HASH_SIZE)]
    if len(hashes) != width:
        raise _refuse(f"Hashes of level {level} are missing.")
    return hashes
