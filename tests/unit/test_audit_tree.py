"""The tree against RFC test vectors, against a naive one, and against damaged proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import tree
from gateway.audit.tree import Frontier

# The eight leaves and the roots of the reference implementation of RFC 6962.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH as RFC 9162 §2.1.1 writes it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return tree.node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def some(count: int) -> list[bytes]:
    return [tree.leaf_hash(str(number).encode()) for number in range(count)]


def lookup(leaves: list[bytes]) -> tree.Lookup:
    return lambda node: naive_root(leaves[node[1] << node[0] : (node[1] + 1) << node[0]])


def inclusion(leaves: list[bytes], index: int, size: int) -> list[bytes]:
    return tree.prove(tree.plan_inclusion(index, size), lookup(leaves))


def consistency(leaves: list[bytes], first: int, second: int) -> list[bytes]:
    return tree.prove(tree.plan_consistency(first, second), lookup(leaves))


def test_roots_of_the_reference_leaves() -> None:
    frontier = Frontier()
    assert frontier.root() == tree.EMPTY_ROOT
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        frontier.append(tree.leaf_hash(leaf))
        assert frontier.root().hex() == root


def test_proofs_of_the_reference_leaves() -> None:
    leaves = [tree.leaf_hash(leaf) for leaf in LEAVES]
    assert [item.hex() for item in inclusion(leaves, 0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [item.hex() for item in inclusion(leaves, 5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [item.hex() for item in consistency(leaves, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [item.hex() for item in consistency(leaves, 2, 5)] == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


def test_every_inclusion_and_consistency_up_to_forty() -> None:
    leaves = some(40)
    roots = [naive_root(leaves[:size]) for size in range(41)]
    for size in range(1, 41):
        for index in range(size):
            proof = inclusion(leaves, index, size)
            assert tree.verify_inclusion(leaves[index], index, size, proof, roots[size])
        for first in range(1, size + 1):
            proof = consistency(leaves, first, size)
            assert tree.verify_consistency((first, roots[first]), (size, roots[size]), proof)


@given(st.integers(1, 700), st.data())
def test_any_two_sizes_are_consistent(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    leaves = some(size)
    heads = (first, tree.root_of(leaves[:first])), (size, tree.root_of(leaves))
    assert tree.verify_consistency(*heads, consistency(leaves, first, size))


@given(st.integers(2, 300), st.data())
def test_a_changed_leaf_breaks_inclusion_and_consistency(size: int, data: st.DataObject) -> None:
    leaves = some(size)
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(index + 1, size))
    forged = [*leaves[:index], tree.leaf_hash(b"forged"), *leaves[index + 1 :]]
    old, new = (first, tree.root_of(leaves[:first])), (size, tree.root_of(forged))
    assert not tree.verify_consistency(old, new, consistency(forged, first, size))
    assert not tree.verify_inclusion(
        leaves[index], index, size, inclusion(forged, index, size), new[1]
    )


@given(st.integers(2, 200), st.data())
def test_A_13_damaged_proofs_are_refused(size: int, data: st.DataObject) -> None:
    leaves = some(size)
    root, index = tree.root_of(leaves), data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size - 1))
    heads = (first, tree.root_of(leaves[:first])), (size, root)
    for proof, holds in (
        (
            inclusion(leaves, index, size),
            lambda p: tree.verify_inclusion(leaves[index], index, size, p, root),
        ),
        (consistency(leaves, first, size), lambda p: tree.verify_consistency(*heads, p)),
    ):
        assert holds(proof)
        extra = tree.leaf_hash(b"extra")
        damaged = [
            [*proof, extra],
            [extra, *proof],
            proof[:-1],
            [*proof, proof[-1]],
            [],
            [b""] * len(proof),
        ]
        at = data.draw(st.integers(0, len(proof) - 1))
        damaged.append([*proof[:at], extra, *proof[at + 1 :]])
        assert not any(holds(bad) for bad in damaged if bad != proof)


def test_A_14_an_index_outside_the_tree_is_refused() -> None:
    leaves = some(8)
    root, proof = tree.root_of(leaves), inclusion(leaves, 3, 8)
    for index, size in ((8, 8), (-1, 8), (3, 4), (3, 16), (3, 0), (2**63, 2**63 + 1)):
        assert not tree.verify_inclusion(leaves[3], index, size, proof, root)
    with pytest.raises(ValueError, match="inside"):
        tree.plan_inclusion(8, 8)


def test_A_15_consistency_from_nothing_or_without_proof_is_refused() -> None:
    leaves = some(8)
    root = tree.root_of(leaves)
    assert not tree.verify_consistency((0, tree.EMPTY_ROOT), (8, root), [])
    assert not tree.verify_consistency((4, tree.root_of(leaves[:4])), (8, root), [])
    assert not tree.verify_consistency((8, root), (8, root), [root])
    assert not tree.verify_consistency((8, root), (8, tree.EMPTY_ROOT), [])
    assert not tree.verify_consistency((9, root), (8, root), [])
    with pytest.raises(ValueError, match="above zero"):
        tree.plan_consistency(0, 8)


def test_A_16_a_pair_of_hashes_is_no_leaf() -> None:
    left, right = some(2)
    assert tree.leaf_hash(left + right) != tree.node_hash(left, right)


def test_A_12_old_head_and_new_head_need_the_middle() -> None:
    leaves = some(12)
    forged = [*leaves[:5], tree.leaf_hash(b"middle"), *leaves[6:]]
    old, new = (8, tree.root_of(leaves[:8])), (12, tree.root_of(forged))
    assert not tree.verify_consistency(old, new, consistency(forged, 8, 12))
    assert not tree.verify_consistency(old, new, consistency(leaves, 8, 12))


def test_frontier_reports_tile_hashes() -> None:
    leaves = some(600)
    frontier, made = Frontier(), []
    for leaf in leaves:
        made += frontier.append(leaf)
    assert [node for node, _ in made] == [(8, 0), (8, 1)]
    assert [value for _, value in made] == [naive_root(leaves[:256]), naive_root(leaves[256:512])]
    copy = frontier.copy()
    copy.append(leaves[0])
    assert frontier.size == 600
    assert frontier.root() == naive_root(leaves)


def test_paths_of_tiles() -> None:
    assert tree.tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tree.tile_path(0, 1067, 5) == "tile/0/x001/067.p/5"
    assert tree.tile_path(2, 0, 1) == "tile/2/000.p/1"
    assert tree.entries_path(999) == "tile/entries/999"
    assert tree.entries_path(1000, 7) == "tile/entries/x001/000.p/7"


def test_tiles_of_seventy_thousand() -> None:
    """The example of the tlog-tiles specification."""
    found = list(tree.tiles(70_000))
    assert sum(level == 0 and width == 256 for level, _, width in found) == 273
    assert (0, 273, 112) in found
    assert (1, 0, 256) in found
    assert (1, 1, 17) in found
    assert (2, 0, 1) in found
    assert len(found) == 273 + 1 + 1 + 1 + 1
    assert list(tree.tiles(256)) == [(0, 0, 256), (1, 0, 1)]
    assert list(tree.tiles(0)) == []


@given(st.integers(0, 30), st.integers(0, 2**40))
def test_where_a_node_lives(height: int, position: int) -> None:
    level, tile, first, count = tree.tile_of((height, position))
    assert first + count <= 256
    start = (tile * 256 + first) << (8 * level)
    assert (start, count << (8 * level)) == (position << height, 1 << height)


def test_bundles() -> None:
    entries = [b"", b"a", b"x" * 4096]
    bundle = tree.pack(entries)
    assert tree.unpack(bundle, 3) == (entries, True)
    assert tree.unpack(bundle + b"x", 3) == (entries, False)
    assert tree.unpack(bundle, 2)[1] is False
    assert tree.unpack(bundle[:-1], 3)[1] is False
    assert tree.unpack(b"\xff", 1) == ([b""], False)
    assert tree.unpack(b"", 0) == ([], True)
