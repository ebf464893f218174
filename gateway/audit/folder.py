"""Whether an exported evidence folder is sound, every byte of it.

A folder is a mapping from path to content, so that nothing is read here. What a head claims
never decides how much work is done: the files that are there do. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.audit import records, tree
from gateway.audit.checkpoint import Checkpoint, Damaged, Proof, VerifierKey
from gateway.audit.grammar import Story
from gateway.audit.tree import HASH_SIZE, TILE_WIDTH
from gateway.audit.verification import MOST_FINDINGS, Findings, Layer, Report, Scan, name

FORMAT = "gatepass.evidence/1"
_PLACES = re.compile(
    r"(checkpoint|manifest\.json|VERIFY\.md|verify_evidence\.py"
    r"|checkpoints/\d{1,19}\.note|proofs/\d{1,19}\.tlog-proof"
    r"|keys/[0-9a-f]{8}\.vkey|payloads/[a-z0-9_]{1,80}\.json)\Z",
    re.ASCII,
)


@dataclass(frozen=True)
class Expected:
    """What a caller holds from earlier or elsewhere, beside the ledger itself.

    `keys`: trusted verifier keys (else those in the folder are believed); `pins`: notes of older
    heads; `receipts`: `.tlog-proof` texts.
    """

    keys: Sequence[VerifierKey] = ()
    pins: Sequence[str] = ()
    receipts: Sequence[str] = ()


def verify_folder(files: Mapping[str, bytes], expected: Expected | None = None) -> Report:
    """Verify an exported folder completely."""
    return _Folder(files, expected or Expected()).verify()


def describe(content: bytes) -> dict[str, Any]:
    """What the manifest says about a file."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def manifest(origin: str, size: int, root: bytes, listed: Mapping[str, dict[str, Any]]) -> bytes:
    """The bytes of manifest.json: derived from the other files alone, canonical JSON."""
    document = {
        "format": FORMAT,
        "origin": origin,
        "size": size,
        "root": root.hex(),
        "files": listed,
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class _Path:
    """What a receipt tells beside its head: an index, and the hashes up to the root, joined."""

    index: int
    path: bytes


class _Folder:
    def __init__(self, files: Mapping[str, bytes], expected: Expected) -> None:
        self.files = files
        self.expected = expected
        self.findings = Findings()
        self.heads: list[tuple[str, Checkpoint]] = []

    def verify(self) -> Report:
        keys = list(self.expected.keys) or list(self._keys())
        head = None
        if "checkpoint" in self.files:
            head = self.findings.head(self.files["checkpoint"], keys, "checkpoint")
        else:
            self.findings.add(Layer.NOTES, "missing file", "checkpoint is missing")
        if head is not None:
            self._verify_under(head, keys)
        self._verify_layout(head)
        self._verify_manifest(head)
        known = head or Checkpoint("", 0, tree.EMPTY_ROOT)
        found = sorted(self.findings.items, key=lambda finding: finding.layer)
        return Report(known.origin, known.size, known.root, [str(key) for key in keys], found)

    def _verify_under(self, head: Checkpoint, keys: Sequence[VerifierKey]) -> None:
        self.heads = heads = list(self._heads(keys))
        proofs = list(self._proofs(keys))
        scan = Scan(
            self.findings,
            frozenset(older.size for _, older in heads)
            | {older.size for _, _, older in proofs}
            | {head.size},
            frozenset(proof.index for _, proof, _ in proofs),
        )
        if not self._scan(head, scan):
            return
        scan.finish()
        self._compare_upper_tiles(head, scan)
        for source, older in heads:
            scan.compare(older, head.origin, source)
        for source, proof, older in proofs:
            self._compare_proof(scan, source, proof, older)
            scan.compare(older, head.origin, source)
        self._verify_payloads(scan.grammar.stories)

    def _keys(self) -> Iterator[VerifierKey]:
        for path in self._under("keys/"):
            try:
                yield VerifierKey.parse(_text(self.files[path]).removesuffix("\n"))
            except Damaged as error:
                self.findings.add(Layer.NOTES, error.damage, f"{path}: {error}")

    def _heads(self, keys: Sequence[VerifierKey]) -> Iterator[tuple[str, Checkpoint]]:
        sources = [(path, self.files[path]) for path in self._under("checkpoints/")]
        pins = [(f"pinned head {n}", pin.encode()) for n, pin in enumerate(self.expected.pins, 1)]
        for source, note in sources + pins:
            head = self.findings.head(note, keys, source)
            if head is not None:
                yield source, head

    def _proofs(self, keys: Sequence[VerifierKey]) -> Iterator[tuple[str, _Path, Checkpoint]]:
        sources = [(path, self.files[path]) for path in self._under("proofs/")]
        given = enumerate(self.expected.receipts, 1)
        for source, text in sources + [(f"receipt {n}", receipt.encode()) for n, receipt in given]:
            try:
                proof = Proof.parse(_text(text))
            except Damaged as error:
                self.findings.add(Layer.CONSISTENCY, error.damage, f"{source}: {error}")
                continue
            head = self.findings.head(proof.note, keys, source)
            if head is not None:
                # There may be very many, and each has its own copy of the note.
                yield source, _Path(proof.index, b"".join(proof.hashes)), head

    def _scan(self, head: Checkpoint, scan: Scan) -> bool:
        suspects: list[tuple[int, str]] = []
        for level, number, width in tree.tiles(head.size):
            if level:
                break
            bundle = self._file(tree.entries_path(number, width))
            tile = self._file(tree.tile_path(0, number, width))
            if bundle is None or tile is None:
                return False
            entries, exact = tree.unpack(bundle, width)
            suspects += _scan_tile(scan, tile, entries)
            if not exact or len(tile) != width * HASH_SIZE:
                self._wrong_length(number, width, entries, suspects)
            if len(entries) < width:
                break
        self._blame(head, scan, suspects)
        return scan.frontier.size == head.size

    def _wrong_length(
        self, number: int, width: int, entries: Sequence[bytes], suspects: list[tuple[int, str]]
    ) -> None:
        last = number * TILE_WIDTH + max(len(entries) - 1, 0)
        index, words = suspects[0] if suspects else (last, name(b"".join(entries[-1:])))
        sentence = f"{tree.entries_path(number, width)} or its tile has another length ({words})"
        self.findings.add(Layer.TREE, "wrong length", sentence, index)

    def _blame(self, head: Checkpoint, scan: Scan, suspects: list[tuple[int, str]]) -> None:
        fit = (scan.frontier.size, scan.frontier.root()) == (head.size, head.root)
        for index, words in suspects[:MOST_FINDINGS]:
            if fit:
                path = tree.tile_path(0, index // TILE_WIDTH, _width(index, head.size))
                sentence = f"its hash in {path} is not that of the record ({words})"
                self.findings.add(Layer.TREE, "tile hash mismatch", sentence, index)
            else:
                sentence = f"its bytes are not those that were signed ({words})"
                self.findings.add(Layer.TREE, "record hash mismatch", sentence, index)
        if not fit and not suspects:  # the tiles agree with the entries
            first, last = self._narrow(head, scan)
            sentence = (
                f"the head signed at {head.size} does not authenticate the tiles; the change is "
                f"in the records {first} to {last}"
            )
            self.findings.add(Layer.TREE, "tile not authenticated by head", sentence, first)

    def _narrow(self, head: Checkpoint, scan: Scan) -> tuple[int, int]:
        # Older heads tell between which sizes the story changed.
        fits, breaks = 0, head.size
        for _, older in sorted(self.heads, key=lambda item: item[1].size):
            root = scan.roots.get(older.size)
            if root == older.root and older.size < breaks:
                fits = max(fits, older.size)
            elif root is not None and root != older.root:
                breaks = min(breaks, older.size)
        return fits, breaks - 1

    def _compare_upper_tiles(self, head: Checkpoint, scan: Scan) -> None:
        for level, number, width in tree.tiles(head.size):
            if not level:
                continue
            content = self._file(tree.tile_path(level, number, width))
            if content is None:
                continue
            first = number * TILE_WIDTH
            for at, value in enumerate(scan.upper[level][first : first + width]):
                if content[at * HASH_SIZE : (at + 1) * HASH_SIZE] != value:
                    span = TILE_WIDTH**level
                    start = (first + at) * span
                    sentence = (
                        f"{tree.tile_path(level, number, width)} has another hash over the "
                        f"records {start} to {start + span - 1}"
                    )
                    self.findings.add(Layer.TREE, "tile hash mismatch", sentence, start)
            if len(content) != width * HASH_SIZE:
                path = tree.tile_path(level, number, width)
                self.findings.add(Layer.TREE, "wrong length", f"{path} has another length")

    def _compare_proof(self, scan: Scan, source: str, proof: _Path, head: Checkpoint) -> None:
        leaf, path = scan.leaves.get(proof.index, b""), proof.path
        hashes = [path[at : at + HASH_SIZE] for at in range(0, len(path), HASH_SIZE)]
        if not tree.verify_inclusion(leaf, proof.index, head.size, hashes, head.root):
            sentence = f"{source} does not lead from this record to its head"
            self.findings.add(Layer.CONSISTENCY, "proof does not fit", sentence, proof.index)
        elif source.startswith("proofs/") and source != f"proofs/{proof.index}.tlog-proof":
            sentence = f"{source} is the proof of this record, under another name"
            self.findings.add(Layer.CONSISTENCY, "proof does not fit", sentence, proof.index)

    def _verify_payloads(self, stories: Mapping[str, Story]) -> None:
        for path in self._under("payloads/"):
            approval = path.removeprefix("payloads/").removesuffix(".json")
            story = stories.get(approval)
            if story is None:
                self.findings.add(Layer.PAYLOADS, "payload of no request", f"{path} opens nothing")
                continue
            try:
                opened, raw, blind = _opening(self.files[path])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                sentence = f"{path}: {error}"
                self.findings.add(Layer.PAYLOADS, "malformed payload", sentence, story.index)
                continue
            if (
                opened != approval
                or len(blind) != 32
                or records.commit(blind, raw) != story.about[-1]
            ):
                sentence = f"{path} is not what was put before reviewers"
                self.findings.add(Layer.PAYLOADS, "payload altered", sentence, story.index)

    def _verify_layout(self, head: Checkpoint | None) -> None:
        size = 0 if head is None else head.size
        places: set[str] = set()
        if size <= TILE_WIDTH * len(self.files):  # a head may claim any size
            for level, number, width in tree.tiles(size):
                places.add(tree.tile_path(level, number, width))
                if level == 0:
                    places.add(tree.entries_path(number, width))
        for path in self.files:
            if not (path in places or _PLACES.match(path)):
                self.findings.add(Layer.MANIFEST, "unknown file", f"{path} belongs to no export")

    def _verify_manifest(self, head: Checkpoint | None) -> None:
        content = self.files.get("manifest.json")
        if content is None:
            self.findings.add(Layer.MANIFEST, "missing file", "manifest.json is missing")
            return
        known = head or Checkpoint("", 0, tree.EMPTY_ROOT)
        listed = {
            path: describe(self.files[path]) for path in self.files if path != "manifest.json"
        }
        rebuilt = manifest(known.origin, known.size, known.root, listed)
        if content == rebuilt:
            return
        differences = list(_differences(content, rebuilt))
        for sentence in differences or ["manifest.json is not the one of these files"]:
            self.findings.add(Layer.MANIFEST, "manifest mismatch", sentence)

    def _file(self, path: str) -> bytes | None:
        content = self.files.get(path)
        if content is None:
            self.findings.add(Layer.TREE, "missing file", f"{path} is missing")
        return content

    def _under(self, prefix: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(prefix))


def _scan_tile(scan: Scan, tile: bytes, entries: Sequence[bytes]) -> list[tuple[int, str]]:
    suspects = []
    first = scan.frontier.size
    for at, body in enumerate(entries):
        if not scan.feed(body, tile[at * HASH_SIZE : (at + 1) * HASH_SIZE]):
            suspects.append((first + at, name(body)))
    return suspects


def _width(index: int, size: int) -> int:
    return min(TILE_WIDTH, size - index // TILE_WIDTH * TILE_WIDTH)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Damaged("malformed text", "It is not UTF-8.") from None


def _opening(content: bytes) -> tuple[str, bytes, bytes]:
    document = orjson.loads(content)
    if set(document) != {"approval", "arguments", "blind"}:
        raise ValueError("a payload has approval, arguments and blind")
    blind = bytes.fromhex(document["blind"])
    again = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    if again != content or blind.hex() != document["blind"]:
        raise ValueError("not in canonical form")
    return document["approval"], document["arguments"].encode(), blind


def _differences(given: bytes, rebuilt: bytes) -> Iterator[str]:
    try:
        listed = orjson.loads(given)["files"]
        present = orjson.loads(rebuilt)["files"]
        paths = sorted({*listed, *present})
    except (ValueError, TypeError, KeyError):
        yield "manifest.json cannot be read"
        return
    for path in paths:
        if path not in listed:
            yield f"{path} is not named by manifest.json"
        elif path not in present:
            yield f"{path} is named by manifest.json and missing"
        elif listed[path] != present[path]:
            yield f"{path} is not as manifest.json names it"
