"""Whether records are sound: one under its proof, or all of them in order.

Owns findings and verdicts; `folder` applies them to an export, `live` to a database. Pure. Every
finding names a layer (which is the exit code), the record and the class of damage. What this
version does not know is "unsupported", never valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from gateway.audit import checkpoint, records, tree
from gateway.audit.checkpoint import Checkpoint, Damaged, Proof, VerifierKey
from gateway.audit.grammar import Grammar
from gateway.audit.tree import Frontier

MOST_FINDINGS = 100
_ID = re.compile(rb'"id":"([0-9a-f-]{36})"')
_TYPE = re.compile(rb'"type":"([a-z_.]{3,40})"')


class Layer(IntEnum):
    """What was looked at; the value is the exit code of the verifiers."""

    NOTES = 11
    TREE = 12
    CONSISTENCY = 13
    WITNESSES = 14
    GRAMMAR = 15
    PAYLOADS = 16
    MANIFEST = 17
    UNSUPPORTED = 18


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `index` is the record's, where it is one record's fault."""

    layer: Layer
    damage: str
    sentence: str
    index: int | None = None

    def __str__(self) -> str:
        place = "" if self.index is None else f"record {self.index}: "
        return f"[{self.layer.name.lower()}] {self.damage}: {place}{self.sentence}"


@dataclass(frozen=True)
class Report:
    """The verdict. `exit_code` is 0 when nothing was found, else the lowest layer's."""

    origin: str
    size: int
    root: bytes
    keys: Sequence[str]
    findings: Sequence[Finding]

    @property
    def exit_code(self) -> int:
        """0, or the code of the lowest layer with a finding."""
        return min((int(finding.layer) for finding in self.findings), default=0)

    @property
    def valid(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


class Findings:
    """Collects findings and stops counting at a hundred."""

    def __init__(self) -> None:
        self.items: list[Finding] = []
        self._opened: tuple[str | bytes, Checkpoint] | None = None

    def add(self, layer: Layer, damage: str, sentence: str, index: int | None = None) -> None:
        """Note one finding."""
        if len(self.items) < MOST_FINDINGS:
            self.items.append(Finding(layer, damage, sentence, index))

    def head(self, note: str | bytes, keys: Sequence[VerifierKey], name: str) -> Checkpoint | None:
        """Open a note, or say what is wrong with it."""
        if self._opened is None or self._opened[0] != note:  # receipts repeat one note
            try:
                self._opened = note, checkpoint.open_note(note, keys)
            except Damaged as error:
                self.add(Layer.NOTES, error.damage, f"{name}: {error}")
                return None
        return self._opened[1]


@dataclass
class Scan:
    """Records in order: their form, their grammar, and the roots at the sizes in `wanted`."""

    findings: Findings
    wanted: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    frontier: Frontier = field(default_factory=Frontier)
    grammar: Grammar = field(default_factory=Grammar)
    roots: dict[int, bytes] = field(default_factory=dict)
    leaves: dict[int, bytes] = field(default_factory=dict)
    upper: dict[int, list[bytes]] = field(default_factory=dict)
    latest: dict[str, Any] | None = None  # the members of the last record, if it could be read

    def feed(self, body: bytes, kept: bytes | None) -> bool:
        """Take the next record's body; whether its leaf hash is the one that was `kept`.

        It is only read when it is.
        """
        index = self.frontier.size
        leaf = tree.leaf_hash(body)
        for (height, _), value in self.frontier.append(leaf):
            self.upper.setdefault(height // tree.TILE_HEIGHT, []).append(value)
        if self.frontier.size in self.wanted:
            self.roots[self.frontier.size] = self.frontier.root()
        if index in self.marked:
            self.leaves[index] = leaf
        self.latest = None
        if leaf != kept:
            return False
        self._read(index, body)
        return True

    def finish(self) -> None:
        """Look at what only shows at the end."""
        for index, damage, sentence in self.grammar.finish():
            self.findings.add(Layer.GRAMMAR, damage, sentence, index)

    def _read(self, index: int, body: bytes) -> None:
        try:
            record = records.members(body)
        except records.Unsupported as error:
            self.findings.add(Layer.UNSUPPORTED, "unsupported", str(error), index)
        except records.Malformed as error:
            self.findings.add(Layer.GRAMMAR, "malformed record", f"{error} ({name(body)})", index)
        else:
            self.latest = record
            for at, damage, sentence in self.grammar.feed(index, record):
                suffix = f" ({record['type']} {record['id']})" if at == index else ""
                self.findings.add(Layer.GRAMMAR, damage, sentence + suffix, at)

    def compare(self, head: Checkpoint, origin: str, source: str) -> None:
        """Whether an older or other head of the same origin fits what was scanned."""
        size, findings = self.frontier.size, self.findings
        if head.origin != origin:
            findings.add(Layer.CONSISTENCY, "another ledger", f"{source} is of {head.origin!r}")
        elif head.size > size:
            sentence = f"{source} was signed at {head.size} records, here are only {size}"
            findings.add(Layer.CONSISTENCY, "records are missing", sentence)
        elif self.roots.get(head.size, tree.EMPTY_ROOT) != head.root:
            sentence = f"{source} was signed for other records below {head.size}"
            findings.add(Layer.CONSISTENCY, "history was changed", sentence)


def name(body: bytes) -> str:
    """What a damaged record calls itself, as far as that can still be read."""
    kind, identity = _TYPE.search(body), _ID.search(body)
    words = [kind.group(1).decode() if kind else "unreadable kind"]
    words.append(identity.group(1).decode() if identity else "unreadable id")
    return " ".join(words)


def verify_record(body: bytes, index: int, proof: Proof, key: VerifierKey) -> Finding | None:
    """Whether a signed head covers `body` at `index`; what is wrong when not."""
    findings = Findings()
    head = findings.head(proof.note, [key], "the head of the proof")
    if head is not None:
        leaf = tree.leaf_hash(body)
        fits = tree.verify_inclusion(leaf, index, head.size, proof.hashes, head.root)
        if proof.index != index or not fits:
            sentence = f"the signed head does not contain it ({name(body)})"
            findings.add(Layer.TREE, "record hash mismatch", sentence, index)
    return findings.items[0] if findings.items else None
