"""Two JSON values side by side: line by line as they are laid out, and path by path. Pure.

Linear in the size of both: members are paired by name, elements by their place after what both
lists begin and end with is set aside. `1`, `1.0` and `true` are different values here, as they
are for a digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from gateway.policy.difference import step
from web.arguments import MAX_DEPTH, Line, Token, inside, mark, quoted
from web.visible import Segment, segments

MAX_ROWS = 2_000
MAX_CHANGES = 200
SAME, CHANGED, GONE, NEW = "same", "changed", "gone", "new"
#: The kind of token in which the two sides differ.
DIFFERS = "differs"

_Path = tuple[str, ...]
_Ends = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A line of each side. `kind`: same, changed, gone (only left) or new (only right)."""

    kind: str
    left: Line | None
    right: Line | None


@dataclass(frozen=True)
class Change:
    """One place that differs: a JSON pointer (RFC 6901), and both values; None where absent."""

    path: str
    before: tuple[Token, ...] | None
    after: tuple[Token, ...] | None

    @property
    def kind(self) -> str:
        """changed, gone or new."""
        if self.after is None:
            return GONE
        return NEW if self.before is None else CHANGED


@dataclass(frozen=True)
class Comparison:
    """Everything to show; `left_out` counts the rows, `unnamed` the changes beyond the limits."""

    rows: tuple[Row, ...]
    changes: tuple[Change, ...]
    left_out: int
    unnamed: int


@dataclass(frozen=True)
class _Node:
    value: object
    lead: tuple[Token, ...] = ()
    comma: bool = False

    @property
    def tail(self) -> tuple[Token, ...]:
        return (mark(","),) if self.comma else ()


@dataclass
class _Found:
    rows: list[Row] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def pair(self, path: _Path, depth: int, left: _Node | None, right: _Node | None) -> None:
        if left is None or right is None:
            self._one_sided(path, depth, left, right)
        elif _open(left.value, depth) and type(left.value) is type(right.value) and right.value:
            self._containers(path, depth, left, right)
        elif _text(left.value) == _text(right.value):
            self.rows.append(Row(SAME, _leaf_line(depth, left), _leaf_line(depth, right)))
        elif _open(left.value, depth) or _open(right.value, depth):
            self._noted(path, (_leaf(left.value),), (_leaf(right.value),))
            self.rows += [Row(GONE, line, None) for line in _lines(depth, left)]
            self.rows += [Row(NEW, None, line) for line in _lines(depth, right)]
        else:
            before, after = _differing(left.value, right.value)
            self._noted(path, before, after)
            one = Line(depth, (*left.lead, *before, *left.tail))
            other = Line(depth, (*right.lead, *after, *right.tail))
            self.rows.append(Row(CHANGED, one, other))

    def _one_sided(self, path: _Path, depth: int, left: _Node | None, right: _Node | None) -> None:
        if left is not None:
            self._noted(path, (_leaf(left.value),), None)
            self.rows += [Row(GONE, line, None) for line in _lines(depth, left)]
        if right is not None:
            self._noted(path, None, (_leaf(right.value),))
            self.rows += [Row(NEW, None, line) for line in _lines(depth, right)]

    def _containers(self, path: _Path, depth: int, left: _Node, right: _Node) -> None:
        first, last = ("{", "}") if isinstance(left.value, dict) else ("[", "]")
        begins = [Line(depth, (*side.lead, mark(first))) for side in (left, right)]
        self.rows.append(Row(SAME, *begins))
        for name, one, other in _paired(left.value, right.value):
            self.pair((*path, name), depth + 1, one, other)
        ends = [Line(depth, (mark(last), *side.tail)) for side in (left, right)]
        self.rows.append(Row(SAME, *ends))

    def _noted(
        self, path: _Path, before: tuple[Token, ...] | None, after: tuple[Token, ...] | None
    ) -> None:
        self.changes.append(Change(_pointer(path), before, after))


def compare(before: object, after: object) -> Comparison:
    """Lay out two values that `json.loads` may have made; never raises."""
    found = _Found()
    found.pair((), 0, _Node(before), _Node(after))
    return Comparison(
        tuple(found.rows[:MAX_ROWS]),
        tuple(found.changes[:MAX_CHANGES]),
        max(0, len(found.rows) - MAX_ROWS),
        max(0, len(found.changes) - MAX_CHANGES),
    )


def _open(value: object, depth: int) -> bool:
    """Whether it is laid out over several lines."""
    return isinstance(value, dict | list) and bool(value) and depth < MAX_DEPTH


def _lines(depth: int, node: _Node) -> Iterator[Line]:
    if not _open(node.value, depth):
        yield _leaf_line(depth, node)
        return
    first, last = ("{", "}") if isinstance(node.value, dict) else ("[", "]")
    yield Line(depth, (*node.lead, mark(first)))
    for _, inner in _nodes(node.value):
        yield from _lines(depth + 1, inner)
    yield Line(depth, (mark(last), *node.tail))


def _leaf_line(depth: int, node: _Node) -> Line:
    return Line(depth, (*node.lead, _leaf(node.value), *node.tail))


def _leaf(value: object) -> Token:
    if isinstance(value, str):
        return quoted("string", value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = "number" if number else "mark" if isinstance(value, dict | list) else "word"
    return Token(kind, tuple(segments(_text(value))))


def _nodes(value: object) -> list[tuple[str, _Node]]:
    """The members or elements, by name or place."""
    if isinstance(value, dict):
        names = sorted(value)
        return [
            (name, _Node(value[name], (quoted("key", name), mark(": ")), name != names[-1]))
            for name in names
        ]
    items = value if isinstance(value, list) else []
    last = len(items) - 1
    return [(str(place), _Node(item, (), place < last)) for place, item in enumerate(items)]


def _paired(left: object, right: object) -> Iterator[tuple[str, _Node | None, _Node | None]]:
    ours, theirs = _nodes(left), _nodes(right)
    if isinstance(left, dict):
        one, other = dict(ours), dict(theirs)
        for name in sorted({*one, *other}):
            yield name, one.get(name), other.get(name)
        return
    start, end = _shared(ours, theirs)
    middle = zip_longest(ours[start : len(ours) - end], theirs[start : len(theirs) - end])
    ending = zip(ours[len(ours) - end :], theirs[len(theirs) - end :], strict=True)
    for mine, yours in (*zip(ours[:start], theirs[:start], strict=True), *middle, *ending):
        name = (mine or yours or ("",))[0]
        yield name, mine and mine[1], yours and yours[1]


def _shared(ours: Sequence[tuple[str, _Node]], theirs: Sequence[tuple[str, _Node]]) -> _Ends:
    """How many elements both lists begin with, and how many others they end with."""
    mine, yours = ([_text(node.value) for _, node in side] for side in (ours, theirs))
    return _common(mine, yours)


def _common(one: Sequence[object], other: Sequence[object]) -> _Ends:
    shortest = min(len(one), len(other))
    start = next((n for n in range(shortest) if one[n] != other[n]), shortest)
    most = shortest - start
    return start, next((n for n in range(most) if one[-1 - n] != other[-1 - n]), most)


def _differing(before: object, after: object) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Two leaves; of texts, only what is not the same at both ends is marked."""
    if not (isinstance(before, str) and isinstance(after, str)):
        sides = (before, after)
        one, other = (
            Token(f"{_leaf(side).kind} {DIFFERS}", _leaf(side).segments) for side in sides
        )
        return (one,), (other,)
    mine, yours = _atoms(before), _atoms(after)
    start, end = _common(mine, yours)
    return _cut(mine, start, end), _cut(yours, start, end)


def _atoms(text: str) -> list[Segment]:
    """One segment for each character or mark."""
    return [
        piece
        for run in inside(text)
        for piece in ([run] if run.marked else [Segment(character) for character in run.text])
    ]


def _cut(atoms: list[Segment], start: int, end: int) -> tuple[Token, ...]:
    middle = atoms[start : len(atoms) - end]
    parts = (
        ("string", [Segment('"'), *atoms[:start]]),
        (f"string {DIFFERS}", middle),
        ("string", [*atoms[len(atoms) - end :], Segment('"')]),
    )
    return tuple(Token(kind, tuple(_joined(part))) for kind, part in parts if part)


def _joined(atoms: list[Segment]) -> Iterator[Segment]:
    run: list[str] = []
    for atom in atoms:
        if not atom.marked:
            run.append(atom.text)
            continue
        if run:
            yield Segment("".join(run))
            run.clear()
        yield atom
    if run:
        yield Segment("".join(run))


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _pointer(path: _Path) -> str:
    return "".join(map(step, path))
