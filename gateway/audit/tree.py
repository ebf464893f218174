"""The Merkle tree over the ledger (RFC 9162 §2.1) and its tiles (C2SP tlog-tiles).

Pure. A node is (height, position): the hash over the leaves [position << height,
(position + 1) << height). Proofs are first planned as lists of nodes, so that a caller can
fetch just those from wherever hashes are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Node: TypeAlias = tuple[int, int]
Lookup: TypeAlias = Callable[[Node], bytes]

HASH_SIZE = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
MAX_SIZE = 1 << 62
EMPTY_ROOT = hashlib.sha256(b"").digest()
_MAX_PROOF = 64


def leaf_hash(data: bytes) -> bytes:
    """The hash of an entry (RFC 9162 §2.1.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours (RFC 9162 §2.1.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Join the hashes of ever smaller full subtrees, left to right, into one root."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


@dataclass
class Frontier:
    """The right edge of a growing tree: its size and the roots of its full subtrees."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def copy(self) -> Frontier:
        """An independent frontier of the same tree."""
        return Frontier(self.size, list(self.peaks))

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """Add a leaf hash; returns the tile hashes (heights 8, 16, …) that it completed."""
        peaks, index, height, made = self.peaks, self.size, 0, []
        peaks.append(leaf)
        while index & 1:
            right = peaks.pop()
            peaks[-1] = node_hash(peaks[-1], right)
            index >>= 1
            height += 1
            if height % TILE_HEIGHT == 0:
                made.append(((height, index), peaks[-1]))
        self.size += 1
        return made

    def root(self) -> bytes:
        """The root hash at the present size."""
        return fold(self.peaks)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root hash over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def cover(start: int, end: int) -> list[Node]:
    """The full subtrees that make up leaves [start, end); `start` must be aligned to them."""
    nodes = []
    while start < end:
        height = (end - start).bit_length() - 1
        if start:
            height = min(height, (start & -start).bit_length() - 1)
        nodes.append((height, start >> height))
        start += 1 << height
    return nodes


def plan_inclusion(index: int, size: int) -> list[list[Node]]:
    """The nodes of each element of PATH(index, D[0:size]), leaf first (RFC 9162 §2.1.3.1)."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError("the index must lie inside the tree")
    path: list[list[Node]] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(cover(middle, end))
            end = middle
        else:
            path.append(cover(start, middle))
            start = middle
    return path[::-1]


def plan_consistency(first: int, second: int) -> list[list[Node]]:
    """The nodes of each element of PROOF(first, D[0:second]) (RFC 9162 §2.1.4.1)."""
    if not 0 < first <= second <= MAX_SIZE:
        raise ValueError("a consistency proof goes from a size above zero to a larger one")
    path: list[list[Node]] = []
    start, end, whole = 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(cover(middle, end))
            end = middle
        else:
            path.append(cover(start, middle))
            start, whole = middle, False
    if not whole:
        path.append(cover(start, end))
    return path[::-1]


def prove(plan: Sequence[Sequence[Node]], lookup: Lookup) -> list[bytes]:
    """The hashes of a planned proof."""
    return [fold([lookup(node) for node in nodes]) for nodes in plan]


def _split(width: int) -> int:
    return 1 << ((width - 1).bit_length() - 1)


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Whether `proof` shows `leaf` at `index` of the tree (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size <= MAX_SIZE or not _well_formed(proof, root):
        return False
    fn, sn, running = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            running = node_hash(sibling, running)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            running = node_hash(running, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and running == root


def verify_consistency(
    first: tuple[int, bytes], second: tuple[int, bytes], proof: Sequence[bytes]
) -> bool:
    """Whether the head `second` (size, root) only adds to `first` (RFC 9162 §2.1.4.2)."""
    (size1, root1), (size2, root2) = first, second
    if not 0 < size1 <= size2 <= MAX_SIZE or not _well_formed(proof, root2):
        return False
    if size1 == size2:
        return not proof and root1 == root2
    hashes = list(proof)
    if size1 & (size1 - 1) == 0:
        hashes.insert(0, root1)
    if not hashes:
        return False
    fn, sn = size1 - 1, size2 - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    return _climb(hashes, fn, sn) == (root1, root2)


def _climb(hashes: list[bytes], fn: int, sn: int) -> tuple[bytes, bytes] | None:
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if sn == 0:
            return None
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return (old, new) if sn == 0 else None


def _well_formed(proof: Sequence[bytes], root: bytes) -> bool:
    return (
        len(proof) <= _MAX_PROOF
        and len(root) == HASH_SIZE
        and all(len(item) == HASH_SIZE for item in proof)
    )


# C2SP tlog-tiles: where a hash or an entry lives.


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """`tile/1/x001/x234/067.p/8` (`.p/…` only for a partial tile)."""
    return f"tile/{level}/{_number(index, width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """`tile/entries/x001/x234/067.p/8`: the bundle of entries under a level-0 tile."""
    return f"tile/entries/{_number(index, width)}"


def _number(index: int, width: int) -> str:
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def tiles(size: int) -> Iterator[tuple[int, int, int]]:
    """Every tile of a tree as (level, index, width), the rightmost of a level may be partial."""
    level = 0
    while size:
        full, rest = divmod(size, TILE_WIDTH)
        for index in range(full):
            yield level, index, TILE_WIDTH
        if rest:
            yield level, full, rest
        level, size = level + 1, full


def tile_of(node: Node) -> tuple[int, int, int, int]:
    """Where a node's hash comes from: (level, tile index, first, count) of hashes to join."""
    height, position = node
    level, rest = divmod(height, TILE_HEIGHT)
    first = position << rest
    return level, first // TILE_WIDTH, first % TILE_WIDTH, 1 << rest


def join(hashes: Sequence[bytes]) -> bytes:
    """The root of a full subtree, from 2^n hashes one level down."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def pack(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry behind its length as big-endian uint16."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack(bundle: bytes, count: int) -> tuple[list[bytes], bool]:
    """The entries of a bundle, and whether there are exactly `count` without a byte left over."""
    entries: list[bytes] = []
    at = 0
    while at < len(bundle) and len(entries) < count:
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : end])
        at = end
    return entries, at == len(bundle) and len(entries) == count
