"""Gives every committed record its place in the tree and signs the head.

Owns the indexes of records, the tiles and the signed heads. Never writes a record's body. One
process is elected (see `seat`); each election raises a stored epoch, and a sealing transaction
of an older epoch is refused, so that a paused process cannot fork the ledger. A size is signed
once, and a signature is verified before anything rests on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit import checkpoint, heads, tree
from gateway.audit.checkpoint import Checkpoint
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
_ELECTED = (
    select(_META.c.value, select(func.max(_HEADS.c.size)).scalar_subquery().label("size"))
    .where(_META.c.name == EPOCH)
    .with_for_update(read=True, of=_META)
)


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

    async def elect(self, *, announce: bool, deposing: int | None = None) -> bool:
        """Take the seat, raise the epoch, recover the tree; false when another has the seat.

        `deposing` names an election whose sequencer has stopped in its seat: it is ended without
        the seat, unless another process has been elected since. Raises `Unavailable` when the
        stored ledger is not what was signed: nothing will be signed then. `announce` writes
        `ledger.started`.
        """
        if await self._seat.take():
            deposing = None
        elif deposing is None:
            return False
        try:
            async with self._database.connection() as connection:
                # First, so that nobody seals while the tree is read.
                epoch = await _raise_epoch(connection, deposing)
                if epoch is None:
                    return False
                growth = await self._recover(connection)
                if announce:
                    record = self._started(epoch, growth.frontier.size)
                    await self._inserts.records(connection, [record])
        except BaseException:
            await self._seat.leave()
            raise
        self._growth, self.epoch = growth, epoch
        return True

    async def sit(self) -> None:
        """Take the seat of an election that has none: it was lost, or another's process had it."""
        if not await self._seat.held():
            await self._seat.take()

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
            await self._check_place(connection, growth.frontier.size)
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
        self._check_signature(note, Checkpoint(self._signer.origin, frontier.size, root))
        row = {
            "size": frontier.size,
            "epoch": self.epoch,
            "root": root,
            "note": note,
            "created_at": self._clock(),
        }
        await connection.execute(_ADD_HEAD, row)
        return note

    def _check_signature(self, note: str, meant: Checkpoint) -> None:
        try:
            signed = checkpoint.open_note(note, [self._signer.verifier])
        except checkpoint.Damaged as error:
            raise Unavailable(
                f"The key does not sign what can be verified: {error}", code="signature_broken"
            ) from error
        if signed != meant:
            raise Unavailable("The key has signed another head.", code="signature_broken")

    async def _check_place(self, connection: AsyncConnection, size: int) -> None:
        # FOR SHARE keeps the next election out until this transaction has ended.
        stored = (await connection.execute(_ELECTED)).first()
        elected = None if stored is None else stored.value
        if elected != str(self.epoch):
            raise Stale(f"The ledger is sequenced by election {elected}, this is {self.epoch}.")
        found = stored.size or 0 if stored is not None else 0
        if found != size:
            # The rows went back while we were elected, or others have signed in our name.
            await heads.check_remembered(connection, self._signer, found)
            raise Stale(f"The ledger has a head of {found} records, this process one of {size}.")

    async def _recover(self, connection: AsyncConnection) -> Growth:
        head = await heads.newest(connection)
        size = 0 if head is None else head.size
        growth = await _rebuild(connection, size)
        placed = await connection.scalar(select(func.max(_RECORDS.c.index)))
        if (-1 if placed is None else placed) != size - 1:
            raise heads.broken("Its last record is not the one that its last head was signed for.")
        if head is not None and heads.check_signed(head, self._signer).root != (
            growth.frontier.root()
        ):
            raise heads.broken(
                f"Its hashes do not lead to the head that was signed at size {size}."
            )
        await heads.check_remembered(connection, self._signer, size)
        return growth

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


async def _raise_epoch(connection: AsyncConnection, deposing: int | None) -> int | None:
    query = select(_META.c.value).where(_META.c.name == EPOCH).with_for_update()
    stored = await connection.scalar(query)
    if deposing is not None and stored != str(deposing):
        return None
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
        raise heads.broken(f"Hashes of level {level} are missing.")
    return hashes
